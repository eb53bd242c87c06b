package luks

import (
	"bytes"
	"testing"
)

// affordable: to try all slots takes a fuzzer no time.
func affordable(h *Header) bool {
	var work cost
	for _, s := range h.slots {
		work = work.plus(s.kdf)
	}
	for _, d := range h.digests {
		work = work.plus(d.kdf)
	}
	return work.iterations < 10000 && work.kib < 4096
}

func fuzzOpen(t *testing.T, p []byte) {
	h, err := ReadHeader(bytes.NewReader(p), int64(len(p)))
	if err != nil || !affordable(h) {
		return
	}
	key, err := h.Unlock([]byte("secret"))
	if err != nil {
		return
	}
	v, err := h.Open(key)
	if err != nil {
		return
	}
	if v.Size() < 0 || v.Size() > int64(len(p)) {
		t.Fatalf("%d bytes of plain text in %d", v.Size(), len(p))
	}
	q := make([]byte, v.Size())
	if n, err := v.ReadAt(q, 0); n != len(q) && err == nil {
		t.Fatalf("%d of %d bytes", n, len(q))
	}
}

// FuzzLUKS1: patches of the header (where, how many bytes, the bytes).
func FuzzLUKS1(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 104, 8, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 64})
	f.Add([]byte{1, 96, 8, 0, 0, 0, 1, 0, 0, 0x3f, 0xff})
	f.Add([]byte{0, 40, 11, 'x', 't', 's', '-', 'p', 'l', 'a', 'i', 'n', 0, 0})
	base := makeLUKS1(f, "secret", random(dataBytes, 7))
	f.Fuzz(func(t *testing.T, in []byte) {
		p := bytes.Clone(base)
		for len(in) > 3 {
			at := (int(in[0])<<8 + int(in[1])) % 1024
			n := min(int(in[2]), len(in)-3)
			copy(p[at:], in[3:3+n])
			in = in[3+n:]
		}
		fuzzOpen(t, p)
	})
}

// FuzzLUKS2: any JSON under a right checksum.
func FuzzLUKS2(f *testing.F) {
	text := json2(f, random(64, 1))
	f.Add(text)
	f.Add(text[:len(text)/2])
	f.Add(`{"keyslots":{"0":{}},"segments":{"0":{"type":"crypt","sector_size":512,"size":"-5","encryption":"aes-cbc-plain"}},"digests":{"0":{"segments":["0"],"digest":"AAAA","salt":"AAAA"}}}`)
	f.Add(`{"segments":[[[[]]]]}`)
	base := makeLUKS2(f, "secret", random(dataBytes, 7), nil)
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 12<<10 {
			return
		}
		p := bytes.Clone(base)
		writeCopy(p, 0, 5, text)
		writeCopy(p, 16<<10, 5, text)
		fuzzOpen(t, p)
	})
}
