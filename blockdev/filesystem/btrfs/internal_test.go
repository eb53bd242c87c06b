package btrfs

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// TestInodeNumbersAreUnique: what encode gives, decode takes back, and no other number
// means the same.
func TestInodeNumbersAreUnique(t *testing.T) {
	codes := []uint64{0, 5, 256, 1<<smallCodeBits - 1, 1 << smallCodeBits, 1<<largeCodeBits - 1}
	objects := []uint64{1, 256, 1<<smallObjectBits - 1, 1 << smallObjectBits, lostBit - 1}
	seen := make(map[filesystem.Inode]bool)
	for _, code := range codes {
		for _, object := range objects {
			for _, lost := range []bool{false, true} {
				make := encode
				if lost {
					make = encodeLost
				}
				n, err := make(code, object)
				if err != nil {
					t.Fatal(err)
				}
				c, o, l, ok := decode(n)
				if !ok || c != code || o != object || l != lost || seen[n] {
					t.Errorf("%d, %d, %v is %#x, which is %d, %d, %v, %v", code, object, lost, n, c, o, l, ok)
				}
				seen[n] = true
			}
		}
	}
	for _, x := range [][2]uint64{{1 << largeCodeBits, 256}, {256, lostBit}} {
		if n, err := encode(x[0], x[1]); !errors.Is(err, filesystem.ErrUnsupported) {
			t.Errorf("%v: %#x, %v", x, n, err)
		}
	}
	for _, n := range []filesystem.Inode{1 << (smallObjectBits + smallCodeBits), 1 << 62, filesystem.Inode(largeBit | 256)} {
		if _, _, _, ok := decode(n); ok {
			t.Errorf("%#x is an inode number", n)
		}
	}
}

// TestChangesAreThoseOfAMap: against a plain map, in random order.
func TestChangesAreThoseOfAMap(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	c, model := new(changes), make(map[key][]byte)
	for range 20000 {
		k := key{rnd.Uint64N(50), uint8(rnd.IntN(3)), rnd.Uint64N(100)}
		if rnd.IntN(3) == 0 {
			c.set(k, nil)
			model[k] = nil
		} else {
			data := []byte{byte(rnd.Uint32())}
			c.set(k, data)
			model[k] = data
		}
	}
	for k, want := range model {
		if got, ok := c.get(k); !ok || !bytes.Equal(got, want) {
			t.Fatalf("%v is %v, %v, want %v", k, got, ok, want)
		}
	}
	for range 100 {
		k := key{rnd.Uint64N(60), uint8(rnd.IntN(4)), rnd.Uint64N(110)}
		var want *key
		for m, data := range model {
			if data != nil && m.compare(k) <= 0 && (want == nil || m.compare(*want) > 0) {
				want = &m
			}
		}
		got, ok := c.floor(k)
		if ok != (want != nil) || ok && got.key != *want {
			t.Fatalf("floor of %v is %v, %v, want %v", k, got.key, ok, want)
		}
	}
	n := 0
	last := key{}
	for u := c.from(key{}); ; u.next() {
		x, ok := u.peek()
		if !ok {
			break
		}
		if n > 0 && x.key.compare(last) <= 0 {
			t.Fatalf("%v is behind %v", x.key, last)
		}
		last = x.key
		n++
	}
	if n != len(model) {
		t.Errorf("%d changes, want %d", n, len(model))
	}
}

// TestLZO: a stream with each kind of instruction, put together by hand from the
// description in Documentation/staging/lzo.rst.
func TestLZO(t *testing.T) {
	for _, c := range []struct {
		name, in, want string
		ok             bool
	}{
		{"literals only", "\x15abcd\x11\x00\x00", "abcd", true},
		{"long run", "\x00\x05" + string(bytes.Repeat([]byte("x"), 23)) + "\x11\x00\x00", string(bytes.Repeat([]byte("x"), 23)), true},
		{"near match that repeats itself", "\x12a\x40\x00\x11\x00\x00", "aaaa", true},
		{"match of five and more", "\x15abcd\xac\x00\x11\x00\x00", "abcdabcdab", true},
		{"match by two bytes, with a literal", "\x15abcd\x22\x0d\x00z\x11\x00\x00", "abcdabcdz", true},
		{"end is missing", "\x15abcd", "", false},
		{"distance before the start", "\x12a\x40\x01\x11\x00\x00", "", false},
		{"run longer than the stream", "\x15ab", "", false},
		{"nothing", "", "", false},
	} {
		got, err := lzo1x(nil, []byte(c.in), 4096)
		if (err == nil) != c.ok || c.ok && string(got) != c.want {
			t.Errorf("%s: %q, %v, want %q", c.name, got, err, c.want)
		}
	}
	if _, err := lzo1x(nil, []byte("\x15abcd\x11\x00\x00"), 3); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("over the limit: %v", err)
	}
}

// FuzzDecompress: no panic and no more than the length that was asked for.
func FuzzDecompress(f *testing.F) {
	dec, err := newZstd()
	if err != nil {
		f.Fatal(err)
	}
	fs := &FS{super: &superblock{sectorSize: 4096}, zstd: dec}
	f.Add(uint8(compressionZlib), uint16(2), []byte("\x78\x9c\x4b\x04\x00\x00\x62\x00\x62"))
	f.Add(uint8(compressionLZO), uint16(1), []byte("\x10\x00\x00\x00\x08\x00\x00\x00\x15abcd\x11\x00\x00"))
	f.Add(uint8(compressionZstd), uint16(4), []byte("\x28\xb5\x2f\xfd\x04\x00\x09\x00\x00a\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, compression uint8, sectors uint16, p []byte) {
		ram := (int(sectors)%32 + 1) << 12
		out, err := fs.decompress(compression%(compressionMax+1), p, ram, sectors&1 != 0)
		if err == nil && len(out) > ram {
			t.Fatalf("%d bytes, at most %d", len(out), ram)
		}
		if err != nil && !errors.Is(err, filesystem.ErrCorrupt) && !errors.Is(err, filesystem.ErrUnsupported) {
			t.Fatal(err)
		}
	})
}
