package dedupe_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
)

// TestSumAll compares with the standard library, with and without a key: all counts around the number of
// lanes, lengths around a block of SHA-256, lengths that differ.
func TestSumAll(t *testing.T) {
	src := rand.NewChaCha8([32]byte{1})
	message := func(n int) []byte {
		p := make([]byte, n+3)
		src.Read(p)
		return p[3:] // not aligned
	}
	secret := []byte("thirty-two bytes of a secret key")
	key := dedupe.NewIDKey(secret)
	check := func(messages [][]byte) {
		t.Helper()
		sums := make([]dedupe.Digest, len(messages)+1)
		dedupe.SumAll(sums, messages)
		for i, m := range messages {
			if want := sha256.Sum256(m); sums[i] != want {
				t.Fatalf("message %d of %d, %d bytes: %v, want %x", i, len(messages), len(m), sums[i], want)
			}
		}
		key.SumAll(sums, messages)
		for i, m := range messages {
			h := hmac.New(sha256.New, secret)
			h.Write(m)
			if want := dedupe.Digest(h.Sum(nil)); sums[i] != want || key.Sum(m) != want {
				t.Fatalf("message %d of %d, %d bytes, under a key: %v and %v, want %v", i, len(messages), len(m), sums[i], key.Sum(m), want)
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

// TestIDKey: the key is in nothing that is printed, a nil key is SHA-256, and a sum
// allocates nothing.
func TestIDKey(t *testing.T) {
	secret := []byte("thirty-two bytes of a secret key")
	key := dedupe.NewIDKey(secret)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		if got := fmt.Sprintf(verb, key); got != "id key (hidden)" {
			t.Errorf("%s prints %q", verb, got)
		}
	}
	p := make([]byte, 4096)
	if got := (*dedupe.IDKey)(nil).Sum(p); got != dedupe.Sum(p) {
		t.Errorf("sum without a key is %v, want %v", got, dedupe.Sum(p))
	}
	least := 1.0 // a pool may be emptied at any time
	for range 50 {
		least = min(least, testing.AllocsPerRun(1, func() { key.Sum(p) }))
	}
	if least > 0 {
		t.Errorf("a sum allocates %v times", least)
	}
}

func BenchmarkSumAll(b *testing.B) {
	for _, keyed := range []bool{false, true} {
		var key *dedupe.IDKey
		name := "plain"
		if keyed {
			name, key = "keyed", dedupe.NewIDKey(make([]byte, 32))
		}
		for _, count := range []int{1, 4, 8} {
			b.Run(fmt.Sprintf("%s/%d", name, count), func(b *testing.B) {
				messages := make([][]byte, count)
				for i := range messages {
					messages[i] = make([]byte, dedupe.DefaultBlockSize)
				}
				sums := make([]dedupe.Digest, count)
				b.SetBytes(int64(count) * dedupe.DefaultBlockSize)
				b.ReportAllocs()
				for b.Loop() {
					key.SumAll(sums, messages)
				}
			})
		}
	}
}
