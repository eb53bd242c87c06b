package wtf8_test

import (
	"bytes"
	"testing"
	"unicode/utf16"

	"github.com/keelblock/keelblock/blockdev/filesystem/wtf8"
)

func TestWellFormedNamesAreUTF8(t *testing.T) {
	for _, s := range []string{"", "a", "Grüße", "файл", "文件", "😀\U0010FFFF", "a\x00b", "\uFFFF\uD7FF\uE000"} {
		if got := wtf8.Append([]byte("x"), utf16.Encode([]rune(s))); string(got) != "x"+s {
			t.Errorf("%q became %q", s, got)
		}
	}
}

func TestLoneSurrogatesAreKept(t *testing.T) {
	for want, units := range map[string][]uint16{
		"\xed\xa0\x80":             {0xD800},
		"\xed\xbf\xbf":             {0xDFFF},
		"a\xed\xb0\x80b":           {'a', 0xDC00, 'b'},
		"\xed\xb8\x80\xed\xa0\xbd": {0xDE00, 0xD83D},
		"\xed\xa0\xbd😀":            {0xD83D, 0xD83D, 0xDE00},
	} {
		if got := wtf8.Append(nil, units); string(got) != want {
			t.Errorf("%x became %x, want %x", units, got, want)
		}
	}
}

// Every pair of units has bytes of its own, and the bytes of two names differ
// whatever follows.
func TestNamesStayApart(t *testing.T) {
	some := []uint16{0, 'a', 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xE000, 0xFFFF}
	seen := make(map[string][2]uint16)
	for _, a := range some {
		for _, b := range some {
			name := string(wtf8.Append(nil, []uint16{a, b}))
			if other, ok := seen[name]; ok {
				t.Errorf("%x and %x are both %q", other, []uint16{a, b}, name)
			}
			seen[name] = [2]uint16{a, b}
		}
	}
	if got := wtf8.Units([]byte{1, 2, 3, 4, 5}); len(got) != 2 || got[0] != 0x0201 || got[1] != 0x0403 {
		t.Errorf("%x", got)
	}
	if got := wtf8.Append(nil, wtf8.Units([]byte("k\x00b\x00"))); !bytes.Equal(got, []byte("kb")) {
		t.Errorf("%q", got)
	}
}
