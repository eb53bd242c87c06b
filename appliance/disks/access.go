package disks

import "slices"

// Allowed reports whether a client whose certificate bears this common name, "" without
// a certificate, may use the disk. A disk without a list, and a name that is no disk,
// are open to all.
func (r *Registry) Allowed(name, commonName string) bool {
	r.mu.RLock()
	d := r.disks[name]
	r.mu.RUnlock()
	if d == nil {
		return true
	}
	allow := d.Entry().Allow
	return len(allow) == 0 || commonName != "" && slices.Contains(allow, commonName)
}
