package luks

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestPlainTextIsRead(t *testing.T) {
	plain := random(dataBytes, 7)
	for name, p := range map[string][]byte{"1": makeLUKS1(t, "secret", plain), "2": makeLUKS2(t, "secret", plain, nil)} {
		v := open(t, p, "secret")
		got := make([]byte, v.Size())
		if n, err := v.ReadAt(got, 0); err != nil || n != dataBytes || !bytes.Equal(got, plain) {
			t.Fatalf("LUKS%s: %d bytes, %v, equal: %v", name, n, err, bytes.Equal(got, plain))
		}
		for off := int64(0); off < dataBytes; off += 777 {
			q := make([]byte, min(5001, dataBytes-off))
			if _, err := v.ReadAt(q, off); err != nil || !bytes.Equal(q, plain[off:off+int64(len(q))]) {
				t.Fatalf("LUKS%s at %d: %v", name, off, err)
			}
		}
		if n, err := v.ReadAt(make([]byte, 10), dataBytes-4); n != 4 || err != io.EOF {
			t.Errorf("LUKS%s: %d bytes behind the end, %v", name, n, err)
		}
		h, err := ReadHeader(bytes.NewReader(p), int64(len(p)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Unlock([]byte("Secret")); !errors.Is(err, ErrPassphrase) {
			t.Errorf("LUKS%s, wrong passphrase: %v", name, err)
		}
		key, err := h.Unlock([]byte("secret"))
		if err != nil || !h.Confirms(key) {
			t.Errorf("LUKS%s: its key is not confirmed, %v", name, err)
		}
		key[3] ^= 1
		if h.Confirms(key) || h.Confirms(key[:16]) {
			t.Errorf("LUKS%s: another key is confirmed", name)
		}
		if h.UUID != "11111111-2222-3333-4444-555555555555" || len(h.Identity()) != 64 {
			t.Errorf("LUKS%s: %q", name, h.UUID)
		}
	}
}

func TestSecondHeaderStandsIn(t *testing.T) {
	plain := random(dataBytes, 7)
	for name, c := range map[string]struct {
		damage  func(p []byte)
		warning string
	}{
		"the first is damaged":  {func(p []byte) { p[5000] ^= 1 }, "first copy of the LUKS2 header is not used: checksum"},
		"the second is damaged": {func(p []byte) { p[21000] ^= 1 }, "second copy of the LUKS2 header is not used"},
		"the second is newer": {func(p []byte) {
			writeCopy(p, 0, 4, strings.Replace(json2(t, random(64, 1)), `"memory":32`, `"memory":64`, 1))
		}, "second copy of the LUKS2 header is newer"},
	} {
		p := makeLUKS2(t, "secret", plain, nil)
		c.damage(p)
		v := open(t, p, "secret")
		got := make([]byte, dataBytes)
		if _, err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %v", name, err)
		}
		h, err := ReadHeader(bytes.NewReader(p), int64(len(p)))
		if err != nil || !strings.Contains(strings.Join(h.Warnings, "; "), c.warning) {
			t.Errorf("%s: %q, %v", name, h.Warnings, err)
		}
	}
	p := makeLUKS2(t, "secret", plain, nil)
	p[5000] ^= 1
	p[21000] ^= 1
	if _, err := ReadHeader(bytes.NewReader(p), int64(len(p))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("both damaged: %v", err)
	}
}

func TestWhatIsNotKnownIsRefusedByName(t *testing.T) {
	for name, c := range map[string]struct {
		old, new string
		want     error
		text     string
	}{
		"cipher":       {`"encryption":"aes-xts-plain64","sector_size"`, `"encryption":"serpent-xts-plain64","sector_size"`, ErrUnsupported, "serpent-xts-plain64"},
		"requirement":  {`"keyslots_size":"16384"`, `"keyslots_size":"16384","requirements":{"mandatory":["online-reencrypt-v2"]}`, ErrUnsupported, "online-reencrypt-v2"},
		"integrity":    {`"sector_size":4096`, `"sector_size":4096,"integrity":{"type":"hmac(sha256)"}`, ErrUnsupported, "integrity"},
		"segment type": {`"type":"crypt"`, `"type":"linear"`, ErrUnsupported, "linear"},
		"segments":     {`"segments":{`, `"segments":{"1":{"type":"crypt"},`, ErrUnsupported, "several segments"},
		"sectors":      {`"sector_size":4096`, `"sector_size":3000`, ErrCorrupt, "3000"},
		"no digest":    {`"segments":["0"]`, `"segments":["7"]`, ErrCorrupt, "digest"},
		"JSON":         {`"tokens":{}`, `"tokens":`, ErrCorrupt, "JSON"},
		"data outside": {`"offset":"65536"`, `"offset":"6553600000"`, ErrCorrupt, "data at"},
	} {
		p := makeLUKS2(t, "secret", make([]byte, dataBytes), func(j string) string {
			changed := strings.Replace(j, c.old, c.new, 1)
			if changed == j {
				t.Fatalf("%s: nothing to change", name)
			}
			return changed
		})
		if _, err := ReadHeader(bytes.NewReader(p), int64(len(p))); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadHeader(bytes.NewReader([]byte("LUKS\xba\xbe\x00\x03"+strings.Repeat("\x00", 5000))), 5000); !errors.Is(err, ErrUnsupported) {
		t.Errorf("version 3: %v", err)
	}
}

// A slot that asks for too much is not tried, says why, and keeps nobody else out.
func TestHostileKeySlotsAreNotTried(t *testing.T) {
	for name, c := range map[string]struct{ old, new, text string }{
		"4 GiB of memory":      {`"memory":32`, `"memory":4194304`, "4194304 KiB of memory"},
		"many passes":          {`"time":1`, `"time":4000000000`, "4000000000 passes"},
		"many threads":         {`"cpus":1`, `"cpus":65`, "65 threads"},
		"unknown derivation":   {`"argon2id"`, `"scrypt"`, "scrypt"},
		"many iterations":      {`"type":"argon2id","time":1`, `"type":"pbkdf2","hash":"sha256","iterations":65000000,"time":1`, "65000000 iterations"},
		"unknown hash":         {`"stripes":4,"hash":"sha256"`, `"stripes":4,"hash":"whirlpool"`, "whirlpool"},
		"many stripes":         {`"stripes":4,`, `"stripes":400000000,`, "400000000 stripes"},
		"area outside":         {`"offset":"32768"`, `"offset":"9223372036854775807"`, "not inside the volume"},
		"huge key":             {`"key_size":64,"af"`, `"key_size":1000000,"af"`, "keys of 1000000"},
		"area's cipher":        {`"encryption":"aes-xts-plain64","key_size"`, `"encryption":"twofish-xts-plain64","key_size"`, "twofish"},
		"digest's iterations":  {`"iterations":10`, `"iterations":65000000`, "slots together"},
		"area of a key slot 2": {`"type":"raw"`, `"type":"datashift"`, "key slot of type"},
	} {
		p := makeLUKS2(t, "secret", make([]byte, dataBytes), func(j string) string { return strings.Replace(j, c.old, c.new, 1) })
		h, err := ReadHeader(bytes.NewReader(p), int64(len(p)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := h.Unlock([]byte("secret")); !errors.Is(err, ErrPassphrase) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A wrong passphrase and a key file with any bytes are told apart from damage.
func TestKeyMaterialIsNotInErrors(t *testing.T) {
	p := makeLUKS1(t, "secret", make([]byte, dataBytes))
	h, err := ReadHeader(bytes.NewReader(p), int64(len(p)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Unlock([]byte("hunter2\x00\xff")); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
}

func BenchmarkVolumeReadAt(b *testing.B) {
	plain := random(8<<20, 7)
	for name, p := range map[string][]byte{"cbc-essiv": makeLUKS1(b, "secret", plain), "xts 4096": makeLUKS2(b, "secret", plain, nil)} {
		b.Run(name, func(b *testing.B) {
			v := open(b, p, "secret")
			q := make([]byte, 1<<20)
			b.SetBytes(int64(len(q)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.ReadAt(q, 1<<20); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
