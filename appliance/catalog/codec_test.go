package catalog

import (
	"encoding/hex"
	"testing"
)

// The value of version 1, to the byte; see FORMAT.md.
func TestGoldenValue(t *testing.T) {
	key := []byte("machine\x00web")
	const golden = "4b630100a47d31367b226e616d65223a22776562203c313e227d0a"
	got, err := encode(key, map[string]string{"name": "web <1>"})
	if err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(got) != golden {
		t.Errorf("got %x, want %s", got, golden)
	}
	var v map[string]string
	if err := decode(key, got, &v); err != nil || v["name"] != "web <1>" {
		t.Errorf("%v %v", v, err)
	}
	if err := decode([]byte("machine\x00web2"), got, &v); err == nil {
		t.Error("the value of another key was accepted")
	}
}

func FuzzDecode(f *testing.F) {
	key := []byte("machine\x00web")
	good, err := encode(key, map[string]string{"name": "web"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, value []byte) {
		var v map[string]string
		_ = decode(key, value, &v)
	})
}
