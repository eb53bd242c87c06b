package cbt

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/keelblock/keelblock/blockdev/localdisk"
)

// BenchmarkIntents: what the intent map costs a write of 4 KiB. warm: its region is
// active; none: there is no intent map; cold: 20 000 random writes over 4 GiB whose
// regions are all cold, of which syncs/op counts the waits.
func BenchmarkIntents(b *testing.B) {
	open := func(b *testing.B, intents bool) *Tracker {
		o := options(b, newMemDisk(512))
		if intents {
			o.IntentPath = filepath.Join(filepath.Dir(o.SavePath), "intent")
		}
		return mustOpen(b, emptyDisk{4 << 30}, NewClock(), o)
	}
	for _, intents := range []bool{true, false} {
		b.Run(map[bool]string{true: "warm", false: "none"}[intents], func(b *testing.B) {
			t := open(b, intents)
			p := make([]byte, 4096)
			for off := int64(0); off < 4<<30; off += regionBytes {
				t.WriteAt(p, off)
			}
			r := rand.New(rand.NewPCG(1, 1))
			b.ReportAllocs()
			for b.Loop() {
				t.WriteAt(p, r.Int64N(1<<20)<<12)
			}
		})
	}
	b.Run("cold", func(b *testing.B) {
		path := filepath.Join(b.TempDir(), "disk")
		if err := localdisk.Create(path, 4<<30); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			b.StopTimer()
			d, err := localdisk.Open(path, localdisk.Options{})
			if err != nil {
				b.Fatal(err)
			}
			o := options(b, newMemDisk(512))
			o.IntentPath = filepath.Join(filepath.Dir(o.SavePath), "intent")
			t := mustOpen(b, d, NewClock(), o)
			if err := t.SetBase(PointID{1}); err != nil {
				b.Fatal(err)
			}
			r := rand.New(rand.NewPCG(1, 1))
			p := make([]byte, 4096)
			b.StartTimer()
			for range 20000 {
				if _, err := t.WriteAt(p, r.Int64N(1<<20)<<12); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(t.Stats().IntentSyncs), "syncs/op")
			t.Close()
			b.StartTimer()
		}
	})
}
