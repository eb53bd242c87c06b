package job

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// While guests ask, one core is theirs; when they are quiet a waiting worker gets it.
func TestTurnsKeepACoreForGuests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var requests atomic.Uint64
		turns := NewTurns(2, requests.Load)
		time.Sleep(time.Second)
		turns.Take()
		turns.Take() // nobody asks for anything: both cores
		turns.Give()

		requests.Add(1)
		time.Sleep(turnsLook)
		second := make(chan struct{})
		go func() {
			turns.Take()
			close(second)
		}()
		synctest.Wait()
		select {
		case <-second:
			t.Fatal("a second turn of two cores while a guest asks")
		default:
		}
		turns.Give()
		<-second // the first one's

		third := make(chan struct{})
		go func() {
			turns.Take()
			close(third)
		}()
		synctest.Wait()
		select {
		case <-third:
			t.Fatal("a second turn of two cores while a guest asks")
		default:
		}
		time.Sleep(turnsQuiet)
		turns.Give()
		<-third
		turns.Take() // the guest has been quiet for long enough
		turns.Give()
		turns.Give()
	})
}

// One core has one turn, whatever guests do: jobs go on.
func TestTurnsLeaveJobsOneCore(t *testing.T) {
	var requests atomic.Uint64
	turns := NewTurns(1, func() uint64 { return requests.Add(1) })
	var wg sync.WaitGroup
	var running, most atomic.Int32
	for range 4 {
		wg.Go(func() {
			for range 100 {
				turns.Take()
				if n := running.Add(1); n > most.Load() {
					most.Store(n)
				}
				running.Add(-1)
				turns.Give()
			}
		})
	}
	wg.Wait()
	if most.Load() != 1 || turns.taken != 0 || turns.waiting != 0 {
		t.Fatalf("at most %d turns at once, %d taken and %d waiting in the end; want 1, 0 and 0", most.Load(), turns.taken, turns.waiting)
	}
}
