package localdisk

// CreateSegments makes a segmented disk of small segments.
var CreateSegments = createSegments
