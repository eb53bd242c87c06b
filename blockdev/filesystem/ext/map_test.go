package ext_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/ext"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// TestMapSaysWhereTheBytesLie reads every file of the small images from the places that
// Map gives, and finds what ReadAt gives.
func TestMapSaysWhereTheBytesLie(t *testing.T) {
	for _, s := range smallImages {
		t.Run(s.name, func(t *testing.T) {
			image := smallImage(t, s.name)
			fs, err := ext.Open(bytes.NewReader(image), int64(len(image)))
			if err != nil {
				t.Fatal(err)
			}
			m, err := fstest.FromFS(fs)
			if err != nil {
				t.Fatal(err)
			}
			placed, inline := 0, 0
			for path, e := range m {
				if e.Attr.Type != filesystem.TypeRegular || e.Attr.Size == 0 || e.Attr.Size > 16<<20 {
					continue
				}
				want := make([]byte, e.Attr.Size)
				if _, err := fs.ReadAt(e.Attr.Inode, want, 0); err != nil && !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				got := make([]byte, e.Attr.Size)
				skip := false
				if err := fs.Map(e.Attr.Inode, func(x filesystem.FileExtent) bool {
					if x.Place < 0 {
						skip = true
						return false
					}
					copy(got[x.Offset:], image[x.Place:x.Place+x.Length])
					return true
				}); err != nil {
					t.Fatalf("%q: %v", path, err)
				}
				switch {
				case skip:
					inline++
				case !bytes.Equal(got, want):
					t.Errorf("%q: other bytes lie where Map says", path)
				default:
					placed++
				}
			}
			if placed == 0 {
				t.Error("no file has a place")
			}
			t.Logf("%d files have places, %d have none", placed, inline)
		})
	}
}
