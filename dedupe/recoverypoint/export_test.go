package recoverypoint

// LimitCensus makes x count exactly only up to so many digests.
func LimitCensus(x *Index, entries int) { x.entries = entries }
