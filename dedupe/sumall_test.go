package dedupe_test

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
)

// TestSumAll compares with the standard library: all counts around the number of
// lanes, lengths around a block of SHA-256, lengths that differ.
func TestSumAll(t *testing.T) {
	src := rand.NewChaCha8([32]byte{1})
	message := func(n int) []byte {
		p := make([]byte, n+3)
		src.Read(p)
		return p[3:] // not aligned
	}
	check := func(messages [][]byte) {
		t.Helper()
		sums := make([]dedupe.Digest, len(messages)+1)
		dedupe.SumAll(sums, messages)
		for i, m := range messages {
			if want := sha256.Sum256(m); sums[i] != want {
				t.Fatalf("message %d of %d, %d bytes: %v, want %x", i, len(messages), len(m), sums[i], want)
			}
		}
		if !sums[len(messages)].IsZero() {
			t.Fatalf("a digest behind those of %d messages", len(messages))
		}
	}
	for count := range 20 {
		for _, n := range []int{0, 1, 55, 56, 63, 64, 65, 119, 120, 127, 128, 192, 4096, 64 << 10} {
			messages := make([][]byte, count)
			for i := range messages {
				messages[i] = message(n)
			}
			check(messages)
			if count > 0 {
				messages[count-1] = message(n + 64)
				check(messages)
				messages[0] = nil
				check(messages)
			}
		}
	}
	// Eight that differ in a bit each.
	for range 200 {
		base := message(64 << (src.Uint64() % 3))
		messages := make([][]byte, 8)
		for i := range messages {
			messages[i] = append([]byte(nil), base...)
			messages[i][src.Uint64()%uint64(len(base))] ^= 1 << (src.Uint64() % 8)
		}
		check(messages)
	}
}

func BenchmarkSumAll(b *testing.B) {
	for _, count := range []int{1, 4, 8} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			messages := make([][]byte, count)
			for i := range messages {
				messages[i] = make([]byte, dedupe.DefaultBlockSize)
			}
			sums := make([]dedupe.Digest, count)
			b.SetBytes(int64(count) * dedupe.DefaultBlockSize)
			for b.Loop() {
				dedupe.SumAll(sums, messages)
			}
		})
	}
}
