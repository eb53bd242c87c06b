package blockstore_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
)

// Index entries as the first release wrote them, and those of patches, are read as what
// they say; anything shorter or of another version is corrupt.
func TestIndexRows(t *testing.T) {
	t.Parallel()
	base := dedupe.Sum([]byte("base"))
	for _, tt := range []struct {
		name, hex string
		want      blockstore.Row
	}{
		{"node, version 1", "01010003" + "04030201" + "60000000" + "00100000" + "02000000",
			blockstore.Row{Pack: 0x01020304, Offset: 96, Stored: 4096, Epoch: 2, Level: 3, Flags: 1}},
		{"patch, version 2", "02000100" + "07000000" + "00000200" + "00400000" + "05000000" + "3f040800" + "39300000" + base.String(),
			blockstore.Row{Pack: 7, Offset: 0x20000, Stored: 0x4000, Epoch: 5, Encoding: 1, Base: base, Depth: 4, Total: 8, Slot: 63, Share: 12345}},
	} {
		b, err := hex.DecodeString(tt.hex)
		if err != nil {
			t.Fatal(err)
		}
		got, again, err := blockstore.DecodeRow(b)
		if err != nil || got != tt.want || !bytes.Equal(again, b) {
			t.Errorf("%s: %+v, %v, again %x", tt.name, got, err, again)
		}
		for n := range b {
			if _, _, err := blockstore.DecodeRow(b[:n]); !errors.Is(err, dedupe.ErrCorrupt) {
				t.Errorf("%s, %d bytes: %v", tt.name, n, err)
			}
		}
	}
	for name, row := range map[string]string{
		"unknown version":       "03" + strings.Repeat("00", 59),
		"patch in a short row":  "01000100" + strings.Repeat("00", 56),
		"whole block as patch":  "02000000" + strings.Repeat("00", 56),
		"patch row of 20 bytes": "02000100" + strings.Repeat("00", 16),
	} {
		b, _ := hex.DecodeString(row)
		if _, _, err := blockstore.DecodeRow(b); !errors.Is(err, dedupe.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
