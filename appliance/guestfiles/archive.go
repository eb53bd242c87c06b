package guestfiles

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// ArchiveOptions of an archive.
type ArchiveOptions struct {
	// Failed is told of each file that is left out of the archive.
	Failed func(path string, err error)
	// Progress, when not nil, is told of bytes of data as they are written.
	Progress func(bytes int64)
}

// item is a file on its way into the archive; what it needs is being read until ready
// is closed.
type item struct {
	from  Found
	name  string
	in    contents
	err   error
	ready chan struct{}
}

// Archive writes a node, with all that is below, as a tar archive in the format of
// POSIX.1-2001 (pax): times to the nanosecond, extended attributes and ACLs
// (SCHILY.xattr), hard links, holes (GNU.sparse 1.0), names and numbers of any size.
// Names begin with name.
//
// A file that cannot be read is left out and told to Failed, save when that shows only
// in the middle of a large file: its size has been written by then, and the archive ends
// there with an error, without the end that a whole archive has.
func Archive(ctx context.Context, w io.Writer, from Found, name string, o ArchiveOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	items := make(chan *item, 4*copyWorkers)
	var walked error
	go func() {
		defer close(items)
		walked = collect(ctx, from, name, items)
	}()
	a := &archiver{o: o, w: &paxWriter{w: w}, links: make(map[key]*firstName)}
	for it := range items {
		<-it.ready
		if it.err == nil {
			it.err = a.add(ctx, it)
		}
		if a.w.err != nil {
			return a.w.err
		}
		if it.err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if o.Failed != nil {
				o.Failed(it.from.Path, it.err)
			}
		}
	}
	if walked != nil {
		return walked
	}
	return a.w.end()
}

// collect walks, and starts to read what each file needs.
func collect(ctx context.Context, from Found, name string, items chan<- *item) error {
	workers := make(chan struct{}, copyWorkers)
	var wg sync.WaitGroup
	defer wg.Wait()
	return Walk(ctx, from, true, func(f Found, err error) error {
		it := &item{from: f, name: name + f.Path[len(from.Path):], err: err, ready: make(chan struct{})}
		if from.Path == "" && f.Path != "" {
			it.name = name + "/" + f.Path
		}
		if err != nil {
			close(it.ready)
		} else {
			workers <- struct{}{}
			wg.Go(func() {
				it.in, it.err = f.load(ctx)
				close(it.ready)
				<-workers
			})
		}
		select {
		case items <- it:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

type archiver struct {
	o     ArchiveOptions
	w     *paxWriter
	links map[key]*firstName
}

// firstName is the name in the archive of a file that has more.
type firstName struct {
	name string
	left uint32
}

var tarTypes = map[filesystem.Type]byte{filesystem.TypeRegular: '0', filesystem.TypeSymlink: '2', filesystem.TypeChar: '3',
	filesystem.TypeBlock: '4', filesystem.TypeDir: '5', filesystem.TypeFifo: '6'}

// add writes one file.
func (a *archiver) add(ctx context.Context, it *item) error {
	at := it.from.attr
	h := paxHeader{name: it.name, attr: at, typeflag: tarTypes[at.Type], link: string(it.in.target), xattrs: it.in.xattrs}
	switch {
	case at.Type == filesystem.TypeSocket:
		return errors.New("a socket cannot stand in a tar archive")
	case h.typeflag == 0:
		return fmt.Errorf("unknown type %d: %w", at.Type, filesystem.ErrUnsupported)
	case at.Type == filesystem.TypeDir:
		h.name += "/"
	case a.linked(it):
		h.typeflag, h.link, h.xattrs = '1', a.links[it.from.key()].name, nil
		return a.w.header(h)
	}
	if at.Type != filesystem.TypeRegular {
		return a.w.header(h)
	}
	data, err := it.from.allData(ctx, it.in)
	if err != nil {
		return err
	}
	for _, e := range data {
		h.size += e.Length
	}
	if h.size < at.Size {
		h.sparse, h.data = true, data
	}
	if err := a.w.header(h); err != nil {
		return err
	}
	if err := a.contents(ctx, it, data); err != nil {
		// What follows would be taken for the contents of this file.
		a.w.err = fmt.Errorf("%s: %w; the archive ends here and is not whole", Escape([]byte(it.from.Path)), err)
	}
	return a.w.pad(h.size)
}

// linked says whether the file is in the archive under another name, and remembers it
// otherwise.
func (a *archiver) linked(it *item) bool {
	if it.from.attr.Nlink <= 1 || it.from.vol == nil {
		return false
	}
	k := it.from.key()
	if f := a.links[k]; f != nil {
		f.left--
		return true
	}
	a.links[k] = &firstName{it.name, it.from.attr.Nlink - 1}
	return false
}

func (a *archiver) contents(ctx context.Context, it *item, data []blockdev.Extent) error {
	write := func(p []byte, _ int64) error {
		if a.o.Progress != nil {
			a.o.Progress(int64(len(p)))
		}
		return a.w.write(p)
	}
	if it.in.small != nil {
		for _, e := range data {
			if err := write(it.in.small[e.Offset:e.End()], e.Offset); err != nil {
				return err
			}
		}
		return nil
	}
	return it.from.stream(ctx, data, write)
}
