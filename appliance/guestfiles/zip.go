package guestfiles

import (
	"archive/zip"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"unicode/utf8"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

const (
	// maxZipHoles is how many bytes of holes a file in a zip archive may have: they are
	// written as zeros.
	maxZipHoles = 16 << 30
	// zipUnixOwner is the extra field of Info-ZIP's "new Unix" owners: version 1, then the
	// length and value of user and group.
	zipUnixOwner = 0x7875
)

// Reasons why a file does not stand in a zip archive.
var (
	errZipType = errors.New("a zip archive has files, folders and symbolic links only; use tar")
	// Programs on Windows take a backslash for the end of a folder's name, so a name could
	// lead them out of the folder that they unpack to.
	errZipName  = errors.New("a name with a backslash is not safe in a zip archive; use tar")
	errZipHoles = fmt.Errorf("a zip archive keeps no holes, and this file has more than %d GiB of them; use tar", maxZipHoles>>30)
)

// Zip writes a node, with all that is below, as a zip archive that streams: times to the
// second, modes, owners as numbers (Info-ZIP's extension), symbolic links. It has no
// extended attributes; a hard link is a file of its own, and a hole is zeros. Names begin
// with name.
//
// A file that cannot be read, or cannot stand in such an archive, is left out and told to
// Failed, save when that shows only in the middle of its data: the archive ends there with
// an error, without the directory that a whole archive has at its end.
func Zip(ctx context.Context, w io.Writer, from Found, name string, o ArchiveOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	items := make(chan *item, 4*copyWorkers)
	var walked error
	go func() {
		defer close(items)
		walked = collect(ctx, from, name, items)
	}()
	z := zip.NewWriter(w)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestSpeed) })
	for it := range items {
		<-it.ready
		if it.err == nil {
			it.err = zippable(it)
		}
		if it.err == nil {
			if err := zipFile(ctx, z, it, o); err != nil {
				return fmt.Errorf("%s: %w; the archive ends here and is not whole", Escape([]byte(it.from.Path)), err)
			}
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if o.Failed != nil {
			o.Failed(it.from.Path, it.err)
		}
	}
	if walked != nil {
		return walked
	}
	return z.Close()
}

// zippable says why a file cannot stand in the archive.
func zippable(it *item) error {
	at := it.from.attr
	switch at.Type {
	case filesystem.TypeDir, filesystem.TypeSymlink:
	case filesystem.TypeRegular:
		var data int64
		for _, e := range it.in.data {
			data += e.Length
		}
		if it.in.end >= at.Size && at.Size-data > maxZipHoles {
			return errZipHoles
		}
	default:
		return errZipType
	}
	if strings.Contains(it.name, `\`) {
		return errZipName
	}
	return nil
}

// zipFile writes one file.
func zipFile(ctx context.Context, z *zip.Writer, it *item, o ArchiveOptions) error {
	at := it.from.attr
	h := &zip.FileHeader{Name: it.name, Modified: at.Mtime, Method: zip.Deflate, NonUTF8: !utf8.ValidString(it.name), Extra: zipOwner(at)}
	mode := fs.FileMode(at.Perm & 0o777)
	for _, bit := range []struct {
		perm uint16
		mode fs.FileMode
	}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}} {
		if at.Perm&bit.perm != 0 {
			mode |= bit.mode
		}
	}
	switch at.Type {
	case filesystem.TypeDir:
		h.Name, h.Method, mode = h.Name+"/", zip.Store, mode|fs.ModeDir
	case filesystem.TypeSymlink:
		h.Method, mode = zip.Store, mode|fs.ModeSymlink
	}
	h.SetMode(mode)
	w, err := z.CreateHeader(h)
	if err != nil || at.Type == filesystem.TypeDir {
		return err
	}
	if at.Type == filesystem.TypeSymlink {
		_, err = w.Write(it.in.target)
		return err
	}
	return zipContents(ctx, w, it, o)
}

// zipOwner is the extra field with the owners.
func zipOwner(at filesystem.Attr) []byte {
	p := binary.LittleEndian.AppendUint16(nil, zipUnixOwner)
	p = append(binary.LittleEndian.AppendUint16(p, 11), 1, 4)
	p = append(binary.LittleEndian.AppendUint32(p, at.UID), 4)
	return binary.LittleEndian.AppendUint32(p, at.GID)
}

// zipContents writes all bytes of a file, holes as zeros.
func zipContents(ctx context.Context, w io.Writer, it *item, o ArchiveOptions) error {
	if it.in.small != nil {
		_, err := w.Write(it.in.small)
		if err == nil && o.Progress != nil {
			o.Progress(int64(len(it.in.small)))
		}
		return err
	}
	data, err := it.from.allData(ctx, it.in)
	if err != nil {
		return err
	}
	var zeros [64 << 10]byte
	done := int64(0)
	hole := func(to int64) error {
		for done < to && ctx.Err() == nil {
			n := min(to-done, int64(len(zeros)))
			if _, err := w.Write(zeros[:n]); err != nil {
				return err
			}
			done += n
		}
		return ctx.Err()
	}
	if err := it.from.stream(ctx, data, func(p []byte, off int64) error {
		if err := hole(off); err != nil {
			return err
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		if o.Progress != nil {
			o.Progress(int64(len(p)))
		}
		done = off + int64(len(p))
		return nil
	}); err != nil {
		return err
	}
	return hole(it.from.attr.Size)
}
