package lru_test

import (
	"sync"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

func TestWhatWasUsedLongestAgoGoesFirst(t *testing.T) {
	c := lru.New(10 * 1160)
	key := func(i int) lru.Key { return lru.Key{Class: 1, A: uint64(i)} }
	for i := range 10 {
		c.Put(key(i), i, 1000)
	}
	if v, ok := lru.Get[int](c, key(0)); !ok || v != 0 {
		t.Fatalf("%d, %v: ten values fit", v, ok)
	}
	c.Put(key(10), 10, 1000) // key 1 has to go, as 0 was used since
	for i, want := range map[int]bool{0: true, 1: false, 2: true, 10: true} {
		if _, ok := lru.Get[int](c, key(i)); ok != want {
			t.Errorf("value %d is kept: %v, want %v", i, ok, want)
		}
	}
	c.Put(key(2), 99, 1000)
	if v, _ := lru.Get[int](c, key(2)); v != 2 {
		t.Errorf("a value was replaced by %d", v)
	}
	c.Put(key(11), 11, 1<<20) // larger than the cache: it stays alone
	if _, ok := lru.Get[int](c, key(11)); !ok {
		t.Error("a large value is not kept")
	}
	if _, ok := lru.Get[int](c, key(10)); ok {
		t.Error("the limit is not held")
	}
}

func TestManyGoroutinesShareACache(t *testing.T) {
	c := lru.New(50 * 1160)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				k := lru.Key{Class: uint8(i % 2), A: uint64(i*7+g) % 100}
				if v, ok := lru.Get[lru.Key](c, k); ok && v != k {
					t.Errorf("%v gives %v", k, v)
					return
				}
				c.Put(k, k, 1000)
			}
		})
	}
	wg.Wait()
}
