//go:build !amd64

package dedupe

const wide = false

func stateAfter(*[64]byte) (state [8]uint32) { return state }

func sum8(*IDKey, []Digest, [][]byte, int) { panic("dedupe: no wide digests on this machine") }
