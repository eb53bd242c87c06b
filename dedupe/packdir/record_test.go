package packdir

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

var update = flag.Bool("update", false, "write the golden files anew")

func sample() *record {
	return &record{vault: pack.VaultID{1, 2}, self: LocationID{3}, generation: 2, serial: 7, members: []member{
		{id: LocationID{3}, in: true, path: "/srv/vault", mountPoint: true},
		{id: LocationID{4}, otherPast: true, path: "/mnt/b", reason: "input/output error", since: time.Unix(1.7e9, 0).UTC(), lastCommit: 41},
	}}
}

// The record of the first release is read for ever.
func TestRecordGolden(t *testing.T) {
	path := filepath.Join("testdata", "location-v1.bin")
	if *update {
		if err := os.WriteFile(path, sample().encode(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := decodeRecord(b)
	if err != nil || !reflect.DeepEqual(r, sample()) {
		t.Errorf("decoded %+v, %v, want %+v", r, err, sample())
	}
	if got := sample().encode(); string(got) != string(b) {
		t.Errorf("encoded %x, want %x", got, b)
	}
}

// A record with any bit wrong, or cut anywhere, is refused.
func TestRecordDamage(t *testing.T) {
	b := sample().encode()
	for i := range b {
		for bit := range 8 {
			b[i] ^= 1 << bit
			if _, err := decodeRecord(b); !errors.Is(err, dedupe.ErrCorrupt) {
				t.Fatalf("bit %d of byte %d: %v", bit, i, err)
			}
			b[i] ^= 1 << bit
		}
		if _, err := decodeRecord(b[:i]); !errors.Is(err, dedupe.ErrCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(sample().encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		again, err := decodeRecord(r.encode())
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Errorf("%+v becomes %+v, %v", r, again, err)
		}
	})
}
