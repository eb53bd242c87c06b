package diskimage

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/keelblock/keelblock/blockdev"
)

// The qcow2 that is written: docs/interop/qcow2.txt of QEMU.
const (
	clusterBits    = 16
	clusterBytes   = 1 << clusterBits
	l2Entries      = clusterBytes / 8
	l2Covers       = l2Entries * clusterBytes // 512 MiB of disk for each L2 table
	refcountOrder  = 4                        // 16-bit reference counts
	refsPerCluster = clusterBytes / 2
	headerBytes    = 104
	copied         = uint64(1) << 63 // the reference count is exactly one
)

// qcow2 is an image being written. Clusters are given out in the order in which they
// are first needed: header, L1 table, then data and L2 tables, and reference counts
// at the end.
type qcow2 struct {
	f    File
	size int64

	mu   sync.Mutex
	next int64 // next free cluster
	l1   []uint64
	l2   map[int][]uint64 // by index in l1
}

// WriteQCOW2 copies a disk to an empty file as qcow2.
func WriteQCOW2(ctx context.Context, f File, d blockdev.Device, progress Progress) (Report, error) {
	q := &qcow2{f: f, size: d.Size(), l2: make(map[int][]uint64)}
	q.l1 = make([]uint64, (q.size+l2Covers-1)/l2Covers)
	q.next = 1 + q.l1Clusters()
	c := copier{progress: progress, write: q.write}
	n, err := c.run(ctx, readDevice(d), dataExtents(d, progress))
	if err == nil {
		err = q.finish()
	}
	return Report{SizeBytes: q.size, WrittenBytes: n}, err
}

func (q *qcow2) l1Clusters() int64 {
	return (int64(len(q.l1))*8 + clusterBytes - 1) / clusterBytes
}

// write stores p at off of the disk. A piece lies in one aligned MiB, and each MiB is
// handled by one caller, so a cluster is never written by two.
func (q *qcow2) write(p []byte, off int64) error {
	for len(p) > 0 {
		in := off % clusterBytes
		n := min(int64(len(p)), clusterBytes-in)
		cluster := q.cluster(off)
		if _, err := q.f.WriteAt(p[:n], cluster+in); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// cluster is where the cluster of the disk at off lies in the file.
func (q *qcow2) cluster(off int64) int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	i, j := int(off/l2Covers), int(off%l2Covers/clusterBytes)
	table := q.l2[i]
	if table == nil {
		table = make([]uint64, l2Entries)
		q.l2[i] = table
		q.l1[i] = uint64(q.take()) | copied
	}
	if table[j] == 0 {
		table[j] = uint64(q.take()) | copied
	}
	return int64(table[j] &^ copied)
}

// take gives out a cluster; mu is held.
func (q *qcow2) take() int64 {
	off := q.next * clusterBytes
	q.next++
	return off
}

// finish writes the tables and, last, the header.
func (q *qcow2) finish() error {
	for i, table := range q.l2 {
		if err := q.table(table, int64(q.l1[i]&^copied)); err != nil {
			return err
		}
	}
	if err := q.table(q.l1, clusterBytes); err != nil {
		return err
	}
	refTable, refTableClusters, err := q.refcounts()
	if err != nil {
		return err
	}
	// The last cluster may be data that was written in part.
	if err := q.f.Truncate(q.next * clusterBytes); err != nil {
		return err
	}
	h := make([]byte, headerBytes)
	be := binary.BigEndian
	copy(h, "QFI\xfb")
	be.PutUint32(h[4:], 3)
	be.PutUint32(h[20:], clusterBits)
	be.PutUint64(h[24:], uint64(q.size))
	be.PutUint32(h[36:], uint32(len(q.l1)))
	be.PutUint64(h[40:], clusterBytes)
	be.PutUint64(h[48:], uint64(refTable))
	be.PutUint32(h[56:], uint32(refTableClusters))
	be.PutUint32(h[96:], refcountOrder)
	be.PutUint32(h[100:], headerBytes)
	if _, err := q.f.WriteAt(h, 0); err != nil {
		return fmt.Errorf("write qcow2 header: %w", err)
	}
	return nil
}

// refcounts writes a count of one for every cluster, those of the counts included.
func (q *qcow2) refcounts() (table, tableClusters int64, err error) {
	used := q.next
	var blocks int64
	for {
		total := used + blocks + tableClusters
		b := (total + refsPerCluster - 1) / refsPerCluster
		t := (b*8 + clusterBytes - 1) / clusterBytes
		if b == blocks && t == tableClusters {
			break
		}
		blocks, tableClusters = b, t
	}
	total := used + blocks + tableClusters
	entries := make([]uint64, blocks)
	for i := range entries {
		entries[i] = uint64(q.take())
		p := make([]byte, clusterBytes)
		for j := int64(0); j < refsPerCluster && int64(i)*refsPerCluster+j < total; j++ {
			binary.BigEndian.PutUint16(p[j*2:], 1)
		}
		if _, err := q.f.WriteAt(p, int64(entries[i])); err != nil {
			return 0, 0, err
		}
	}
	table = q.next * clusterBytes
	q.next += tableClusters
	return table, tableClusters, q.table(entries, table)
}

func (q *qcow2) table(entries []uint64, off int64) error {
	p := make([]byte, 0, len(entries)*8)
	for _, e := range entries {
		p = binary.BigEndian.AppendUint64(p, e)
	}
	if _, err := q.f.WriteAt(p, off); err != nil {
		return fmt.Errorf("write qcow2 table: %w", err)
	}
	return nil
}
