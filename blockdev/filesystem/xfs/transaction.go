package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Operations, struct xlog_op_header.
const (
	opStart       = 0x01
	opCommit      = 0x02
	opContinue    = 0x04
	opWasContinue = 0x08
	opEnd         = 0x10

	clientTransaction = 0x69
	clientLog         = 0xAA

	transactionMagic      = 0x5452414E // "TRAN", in the machine's byte order
	transactionHeaderSize = 16
	maxItemRegions        = 1 << 15
	// maxPendingBytes bounds what transactions that are not yet committed keep in
	// memory. The kernel pushes a checkpoint at 32 MiB and blocks at 64
	// (XLOG_CIL_BLOCKING_SPACE_LIMIT).
	maxPendingBytes = 80 << 20
)

// item is what a transaction says of one object: a description and its regions.
type item struct {
	regions [][]byte
	total   int // regions it should have
}

func (it *item) kind() uint16 { return binary.LittleEndian.Uint16(it.regions[0]) }

// transaction is one that is being put together: a checkpoint of the kernel's.
type transaction struct {
	lsn    lsn
	header []byte
	items  []*item
	bytes  int64
}

// assembler puts transactions together out of the operations of records, and gives
// the committed ones to use.
type assembler struct {
	open    map[uint32]*transaction
	pending int64
	use     func(*transaction) error
}

// record takes the data of a record (xlog_recover_process_data).
func (a *assembler) record(r *record, data []byte) error {
	be := binary.BigEndian
	for n := 0; n < r.ops && len(data) > 0; n++ {
		if len(data) < opHeaderSize {
			return corruptf("operation %d of log record at sector %d is cut short", n, r.lsn.sector())
		}
		tid, length, client, flags := be.Uint32(data), be.Uint32(data[4:]), data[8], data[9]
		data = data[opHeaderSize:]
		if client != clientTransaction && client != clientLog || uint64(length) > uint64(len(data)) {
			return corruptf("operation %d of log record at sector %d: client %#x, %d bytes", n, r.lsn.sector(), client, length)
		}
		if err := a.operation(tid, r.lsn, flags, data[:length:length]); err != nil {
			return fmt.Errorf("log record at sector %d: %w", r.lsn.sector(), err)
		}
		data = data[length:]
	}
	return nil
}

// operation follows xlog_recovery_process_trans.
func (a *assembler) operation(tid uint32, at lsn, flags byte, p []byte) error {
	t := a.open[tid]
	if t == nil {
		if flags&opStart != 0 {
			if len(a.open) > 1<<12 {
				return corruptf("over %d open transactions", len(a.open))
			}
			a.open[tid] = &transaction{lsn: at}
		}
		return nil // of one that began before the tail
	}
	flags &^= opEnd
	if flags&opWasContinue != 0 {
		flags &^= opContinue
	}
	switch flags {
	case 0, opContinue:
		return a.add(t, p)
	case opWasContinue:
		return a.addMore(t, p)
	case opCommit:
		a.drop(tid, t)
		return a.use(t)
	case opUnmount:
		a.drop(tid, t)
		return nil
	}
	return corruptf("operation with flags %#x", flags)
}

func (a *assembler) drop(tid uint32, t *transaction) {
	a.pending -= t.bytes
	delete(a.open, tid)
}

func (a *assembler) count(t *transaction, p []byte) error {
	const perRegion = 64
	t.bytes += int64(len(p)) + perRegion
	if a.pending += int64(len(p)) + perRegion; a.pending > maxPendingBytes {
		return unsupportedf("transactions of over %d MiB", maxPendingBytes>>20)
	}
	return nil
}

// add takes the next region (xlog_recover_add_to_trans).
func (a *assembler) add(t *transaction, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if err := a.count(t, p); err != nil {
		return err
	}
	if len(t.header) < transactionHeaderSize && len(t.items) == 0 {
		if len(p) > transactionHeaderSize || len(p) < 4 || binary.LittleEndian.Uint32(p) != transactionMagic {
			return corruptf("transaction without its header")
		}
		t.header = append(t.header[:0:0], p...)
		return nil
	}
	var it *item
	if n := len(t.items); n > 0 && len(t.items[n-1].regions) < t.items[n-1].total {
		it = t.items[n-1]
	} else {
		if len(p) < 4 {
			return corruptf("log item of %d bytes", len(p))
		}
		it = &item{total: int(binary.LittleEndian.Uint16(p[2:]))}
		if it.total == 0 || it.total > maxItemRegions {
			return corruptf("log item of %d regions", it.total)
		}
		t.items = append(t.items, it)
	}
	// A copy, so that a small region does not keep a whole record.
	it.regions = append(it.regions, bytes.Clone(p))
	return nil
}

// addMore continues the last region (xlog_recover_add_to_cont_trans).
func (a *assembler) addMore(t *transaction, p []byte) error {
	if err := a.count(t, p); err != nil {
		return err
	}
	if len(t.items) == 0 {
		if len(t.header)+len(p) > transactionHeaderSize {
			return corruptf("transaction header of %d bytes", len(t.header)+len(p))
		}
		t.header = append(t.header, p...)
		return nil
	}
	it := t.items[len(t.items)-1]
	last := &it.regions[len(it.regions)-1]
	*last = append((*last)[:len(*last):len(*last)], p...)
	return nil
}
