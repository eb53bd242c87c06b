package fusemount

import "testing"

// walkDirs lists directories of files each, and looks all up when attributes are wanted
// that were not listed. It gives how many were listed with attributes.
func walkDirs(p *prefetch, dirs, files int, want bool) (with int) {
	for range dirs {
		if p.attributes(true) {
			with++
			continue
		}
		p.listedNames(files)
		for range files {
			if want {
				p.lookedUp()
			}
		}
	}
	return with
}

func TestAttributesAreListedForWhoWantsThem(t *testing.T) {
	for _, files := range []int{1, 3, 1000, 100_000} {
		var p prefetch
		if n := walkDirs(&p, 100, files, false); n != 0 {
			t.Errorf("%d files: names alone were wanted, and %d of 100 directories had attributes", files, n)
		}
		walkDirs(&p, 5000/files+5, files, true) // until the walk before is forgotten
		if n := walkDirs(&p, 170, files, true); n < 158 {
			t.Errorf("%d files: attributes were wanted, and %d of 170 directories had them", files, n)
		}
		if n := walkDirs(&p, 117, files, false); n > 16 {
			t.Errorf("%d files: names alone were wanted again, and %d of 117 directories had attributes", files, n)
		}
	}
}

// In one large directory the first part decides about the next ones.
func TestALargeDirectoryIsListedWithAttributesOnceTheyAreWanted(t *testing.T) {
	var p prefetch
	if p.attributes(true) {
		t.Error("the first listing has attributes")
	}
	p.listedNames(190)
	for range 190 {
		p.lookedUp()
	}
	if !p.attributes(false) {
		t.Error("all files of the first part were looked up, and the next part has no attributes")
	}
}
