package decisions

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

const (
	liveKeys  = 2000
	valueSize = 4 << 10
)

// payloadOptions keep values in the value log, as a store of payload in Badger would.
func payloadOptions(dir string) badger.Options {
	o := badger.DefaultOptions(dir).WithLogger(nil)
	o.SyncWrites = true
	o.ValueThreshold = 1 << 10
	o.ValueLogFileSize = 4 << 20
	o.MemTableSize = 1 << 20
	o.CompactL0OnClose = true
	o.VerifyValueChecksum = true
	return o
}

func liveKey(i int) []byte   { return fmt.Appendf(nil, "live-%06d", i) }
func liveValue(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%08d", i), valueSize/8) }

// fillPayload writes live values, each beside two that are deleted again.
func fillPayload(t *testing.T, dir string) {
	t.Helper()
	db, err := badger.Open(payloadOptions(dir))
	if err != nil {
		t.Fatal(err)
	}
	write := func(fn func(wb *badger.WriteBatch, i int) error) {
		wb := db.NewWriteBatch()
		defer wb.Cancel()
		for i := range liveKeys {
			if err := fn(wb, i); err != nil {
				t.Fatal(err)
			}
		}
		if err := wb.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	write(func(wb *badger.WriteBatch, i int) error {
		return errors.Join(wb.Set(liveKey(i), liveValue(i)),
			wb.Set(fmt.Appendf(nil, "dead-a-%06d", i), liveValue(i)), wb.Set(fmt.Appendf(nil, "dead-b-%06d", i), liveValue(i)))
	})
	write(func(wb *badger.WriteBatch, i int) error {
		return errors.Join(wb.Delete(fmt.Appendf(nil, "dead-a-%06d", i)), wb.Delete(fmt.Appendf(nil, "dead-b-%06d", i)))
	})
	if err := errors.Join(db.Flatten(2), db.Close()); err != nil {
		t.Fatal(err)
	}
}

// readLive counts live values that are lost with an error, and that read as other
// bytes without one.
func readLive(t *testing.T, db *badger.DB) (lost, silent int) {
	t.Helper()
	for i := range liveKeys {
		err := db.View(func(txn *badger.Txn) error {
			item, err := txn.Get(liveKey(i))
			if err != nil {
				return err
			}
			v, err := item.ValueCopy(nil)
			if err == nil && !bytes.Equal(v, liveValue(i)) {
				silent++
			}
			return err
		})
		if err != nil {
			lost++
		}
	}
	return lost, silent
}

// Collecting a value log file in which one bit is wrong ends at that bit, reports
// success, and removes the file with every live value behind the bit.
func TestBadgerCollectionLosesLiveValues(t *testing.T) {
	dir := t.TempDir()
	fillPayload(t, dir)
	logs, err := filepath.Glob(filepath.Join(dir, "*.vlog"))
	if err != nil || len(logs) < 3 {
		t.Fatalf("%d value log files, %v", len(logs), err)
	}
	for _, path := range logs[:len(logs)-1] {
		flipBit(t, path, 64<<10)
	}
	db, err := badger.Open(payloadOptions(dir))
	if err != nil {
		t.Fatalf("the decision falls, or another fault came: open with a wrong bit in the value log: %v", err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Logf("close: %v", err)
		}
	}()
	lostBefore, silentBefore := readLive(t, db)
	collected := 0
	for range len(logs) {
		if err = db.RunValueLogGC(0.1); err != nil {
			break
		}
		collected++
	}
	lost, silent := readLive(t, db)
	t.Logf("%d of %d live values read wrong or not at all with one wrong bit in each of %d files; %d collections succeeded (then: %v); after them %d are lost and %d read as other bytes without an error",
		lostBefore+silentBefore, liveKeys, len(logs)-1, collected, err, lost, silent)
	if collected == 0 || lost+silent <= lostBefore+silentBefore {
		t.Errorf("the decision falls: collection of a damaged value log lost nothing (%d collections): may Badger hold payload?", collected)
	}
}

// A value whose log entry is damaged, or whose file is cut, reads as empty, without an
// error: to a dedupe store that is a block that exists.
func TestBadgerCorruptValueReadsEmpty(t *testing.T) {
	dir := t.TempDir()
	fillPayload(t, dir)
	logs, err := filepath.Glob(filepath.Join(dir, "*.vlog"))
	if err != nil || len(logs) < 3 {
		t.Fatalf("%d value log files, %v", len(logs), err)
	}
	st, err := os.Stat(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(logs[0], st.Size()/2); err != nil {
		t.Fatal(err)
	}
	db, err := badger.Open(payloadOptions(dir))
	if err != nil {
		t.Fatalf("the decision falls, or another fault came: open with half a value log file: %v", err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Logf("close: %v", err)
		}
	}()
	lost, silent := readLive(t, db)
	t.Logf("half a value log file: %d of %d live values are errors, %d read as empty without one", lost, liveKeys, silent)
	if silent == 0 {
		t.Error("the decision falls: a corrupt value is an error now: may Badger hold payload?")
	}
}

// A table with one wrong bit makes Badger panic in a goroutine of its own, where
// nobody can recover: the process that opens the index dies.
func TestBadgerDiesOfDamagedTable(t *testing.T) {
	dir := t.TempDir()
	o := badger.DefaultOptions(dir).WithLogger(nil)
	o.SyncWrites = true
	o.CompactL0OnClose = true
	db, err := badger.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	wb := db.NewWriteBatch()
	for i := range liveKeys {
		if err := wb.Set(liveKey(i), []byte("place")); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(wb.Flush(), db.Close()); err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("%d tables, %v", len(tables), err)
	}
	st, err := os.Stat(tables[0])
	if err != nil {
		t.Fatal(err)
	}
	flipBit(t, tables[0], st.Size()/2)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envOpen+"="+dir)
	out, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("panic:")) {
		t.Errorf("the decision falls: Badger survives a damaged table: %v, %s: is the index's check before Badger still needed?", err, out)
	}
}

func flipBit(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}
