package exfat_test

import (
	"io"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/exfat"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// kernelImages were filled and judged by Debian's kernel 6.1 (mount -t exfat with no
// options) in the guest of `make test-fs-vm UPDATE=1`. Their manifests lack inode numbers
// and the root's times, which that kernel makes up at each mount.
var kernelImages = []struct{ name, label string }{{"exfat-512", "Stück"}, {"exfat-128k", ""}}

func open(r io.ReaderAt, size int64) (filesystem.FS, error) {
	fs, err := exfat.Open(r, size)
	if err != nil {
		return nil, err
	}
	return fs, nil
}

func image(t testing.TB, name string) *fstest.Sparse {
	t.Helper()
	return fstest.LoadSparse(t, "testdata/"+name+".img.gz")
}

// TestKernelImagesConform: zero differences to what the guest's kernel showed.
func TestKernelImagesConform(t *testing.T) {
	for _, k := range kernelImages {
		t.Run(k.name, func(t *testing.T) {
			s := image(t, k.name)
			fs, err := open(s, s.Size())
			if err != nil {
				t.Fatal(err)
			}
			info := fs.Info()
			if info.Label != k.label || !info.State.Clean || info.BlocksFree == 0 || info.BlocksFree >= info.Blocks {
				t.Errorf("%+v", info)
			}
			fstest.Golden(t, fs, "testdata/"+k.name+".manifest.gz", fstest.FieldInode)
			fstest.Cookies(t, fs)
			fstest.Reads(t, fs, 1000)
		})
	}
}

func TestDamagedImagesAreSurvived(t *testing.T) {
	for _, k := range kernelImages {
		t.Run(k.name, func(t *testing.T) { fstest.Survive(t, image(t, k.name), open, 60) })
	}
}

// FuzzOpenAndWalk patches an image of testdata and calls everything. The input is the
// number of the image and then patches (fstest.Sparse.PatchFrom).
func FuzzOpenAndWalk(f *testing.F) {
	var images []*fstest.Sparse
	for i, k := range kernelImages {
		images = append(images, image(f, k.name))
		f.Add([]byte{byte(i)})
		for _, seed := range images[i].Seeds(40) {
			f.Add(append([]byte{byte(i)}, seed...))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 || len(in) > 4096 {
			return
		}
		s := images[int(in[0])%len(images)].Clone()
		s.PatchFrom(in[1:])
		if fs, err := open(s, s.Size()); err == nil {
			fstest.Walk(t, fs, 3000)
		}
	})
}
