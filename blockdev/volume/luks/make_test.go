package luks

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/xts"
)

// Small volumes are made here as the specifications have it, so that damage can be done
// to them. That real ones are read is the matter of tools_test.go and of the images in
// ../testdata.

const (
	stripes    = 4
	iterations = 10
	areaAt     = 32 << 10
	dataAt     = 64 << 10
	dataBytes  = 16 << 10
)

func random(n int, seed byte) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

// split is the anti-forensic splitter.
func split(key []byte) []byte {
	out := random((stripes-1)*len(key), 9)
	state := make([]byte, len(key))
	for i := range stripes - 1 {
		for j := range state {
			state[j] ^= out[i*len(key)+j]
		}
		for j := 0; j*32 < len(state); j++ {
			piece := state[j*32 : min(j*32+32, len(state))]
			sum := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, uint32(j)), piece...))
			copy(piece, sum[:])
		}
	}
	for j := range state {
		state[j] ^= key[j]
	}
	return append(out, state...)
}

func encryptXTS(t testing.TB, key, p []byte, sectorBytes int) []byte {
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, (len(p)+sectorBytes-1)/sectorBytes*sectorBytes)
	copy(out, p)
	for i := 0; i < len(out); i += sectorBytes {
		c.Encrypt(out[i:i+sectorBytes], out[i:i+sectorBytes], uint64(i/512))
	}
	return out
}

func encryptESSIV(t testing.TB, key, p []byte) []byte {
	b, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	salt := sha256.Sum256(key)
	e, err := aes.NewCipher(salt[:])
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, (len(p)+511)/512*512)
	copy(out, p)
	for i := 0; i < len(out); i += 512 {
		iv := make([]byte, 16)
		binary.LittleEndian.PutUint64(iv, uint64(i/512))
		e.Encrypt(iv, iv)
		cipher.NewCBCEncrypter(b, iv).CryptBlocks(out[i:i+512], out[i:i+512])
	}
	return out
}

func pbkdf(t testing.TB, password, salt []byte, n int) []byte {
	k, err := pbkdf2.Key(sha256.New, string(password), salt, iterations, n)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// makeLUKS1 makes an aes-cbc-essiv:sha256 volume whose plain text is given.
func makeLUKS1(t testing.TB, passphrase string, plain []byte) []byte {
	key, salt := random(32, 1), random(32, 2)
	p := make([]byte, dataAt, dataAt+len(plain))
	be := binary.BigEndian
	copy(p, "LUKS\xba\xbe\x00\x01")
	copy(p[8:], "aes")
	copy(p[40:], "cbc-essiv:sha256")
	copy(p[72:], "sha256")
	be.PutUint32(p[104:], dataAt/512)
	be.PutUint32(p[108:], 32)
	copy(p[112:], pbkdf(t, key, salt, 20))
	copy(p[132:], salt)
	be.PutUint32(p[164:], iterations)
	copy(p[168:], "11111111-2222-3333-4444-555555555555")
	for i := range 8 {
		be.PutUint32(p[208+48*i:], luks1Inactive)
	}
	s := p[208+48*3:]
	be.PutUint32(s, luks1Active)
	be.PutUint32(s[4:], iterations)
	copy(s[8:], salt)
	be.PutUint32(s[40:], areaAt/512)
	be.PutUint32(s[44:], stripes)
	copy(p[areaAt:], encryptESSIV(t, pbkdf(t, []byte(passphrase), salt, 32), split(key)))
	return append(p, encryptESSIV(t, key, plain)...)
}

// json2 is the JSON of makeLUKS2.
func json2(t testing.TB, key []byte) string {
	b64 := base64.StdEncoding.EncodeToString
	digest := b64(pbkdf(t, key, random(32, 3), 32))
	return fmt.Sprintf(`{"keyslots":{"0":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":%d,"hash":"sha256"},
"area":{"type":"raw","offset":"%d","size":"4096","encryption":"aes-xts-plain64","key_size":64},
"kdf":{"type":"argon2id","time":1,"memory":32,"cpus":1,"salt":"%s"}}},"tokens":{},
"segments":{"0":{"type":"crypt","offset":"%d","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":4096}},
"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":%d,"salt":"%s","digest":"%s"}},
"config":{"json_size":"12288","keyslots_size":"16384"}}`, stripes, areaAt, b64(random(32, 2)), dataAt, iterations, b64(random(32, 3)), digest)
}

// makeLUKS2 makes an aes-xts-plain64 volume with sectors of 4 KiB. change may edit the
// JSON.
func makeLUKS2(t testing.TB, passphrase string, plain []byte, change func(json string) string) []byte {
	key := random(64, 1)
	p := make([]byte, dataAt, dataAt+len(plain))
	text := json2(t, key)
	if change != nil {
		text = change(text)
	}
	writeCopy(p, 0, 5, text)
	writeCopy(p, 16<<10, 5, text)
	areaKey := argon2.IDKey([]byte(passphrase), random(32, 2), 1, 32, 1, 64)
	copy(p[areaAt:], encryptXTS(t, areaKey, split(key), 512))
	return append(p, encryptXTS(t, key, plain, 4096)...)
}

func writeCopy(p []byte, at int, seq uint64, text string) {
	h := p[at : at+16<<10]
	clear(h)
	be := binary.BigEndian
	copy(h, magicFirst)
	if at > 0 {
		copy(h, magicSecond)
	}
	be.PutUint16(h[6:], 2)
	be.PutUint64(h[8:], 16<<10)
	be.PutUint64(h[16:], seq)
	copy(h[24:], "label")
	copy(h[72:], "sha256")
	copy(h[168:], "11111111-2222-3333-4444-555555555555")
	be.PutUint64(h[256:], uint64(at))
	copy(h[4096:], text)
	sealCopy(h)
}

func sealCopy(h []byte) {
	clear(h[448:512])
	sum := sha256.Sum256(h)
	copy(h[448:], sum[:])
}

func open(t testing.TB, p []byte, passphrase string) *Volume {
	t.Helper()
	h, err := ReadHeader(bytes.NewReader(p), int64(len(p)))
	if err != nil {
		t.Fatal(err)
	}
	key, err := h.Unlock([]byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	v, err := h.Open(key)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
