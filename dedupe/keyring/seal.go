package keyring

import (
	"crypto/rand"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// Overhead is what sealing adds to a payload, in bytes.
const Overhead = tagSize

// Seal encrypts a record's payload in its buffer: RecordHeaderSize bytes of room for the
// header, then the payload, which is replaced. It returns the buffer, longer by Overhead,
// and fills in what r says of cipher, domain, key, nonce and ciphertext hash; everything
// else of r must be as it will be written, for the header is authenticated. The directory
// of a bundle stays in clear: the header's digest is that of it. A block's list of grains is
// sealed apart, with the last byte of the nonce inverted, so that it can be opened alone; its
// seal takes the place of the last Overhead bytes of what stands before the content.
func (k *Keys) Seal(r *pack.Record, buf []byte) ([]byte, error) {
	d := k.dataKeys()[0]
	r.Cipher, r.Domain, r.KeyID = pack.CipherXAES, k.domain, d.id
	r.StoredLength = uint32(len(buf) - pack.RecordHeaderSize + Overhead)
	r.HasCiphertextHash, r.CiphertextHash = true, dedupe.Digest{}
	plain := pack.RecordHeaderSize + int(r.HeadLength)
	header, payload := buf[:pack.RecordHeaderSize], buf[plain:]
	nonce := header[pack.NonceOffset:][:nonceSize]
	rand.Read(nonce) // never fails
	r.Nonce = [nonceSize]byte(nonce)
	if err := pack.EncodeAssociatedData(r, header); err != nil {
		return buf, err
	}
	aead := d.cipher.aead(nonce)
	if r.HasGrainList {
		list := buf[pack.RecordHeaderSize : plain-Overhead]
		listNonce := listNonce(nonce)
		aead.Seal(list[:0], listNonce[:], list, header)
	}
	sealed := aead.Seal(payload[:0], nonce[12:], payload, header)
	if cap(buf) >= plain+len(sealed) { // in place
		buf = buf[:plain+len(sealed)]
	} else {
		buf = append(buf[:plain], sealed...)
	}
	r.CiphertextHash = dedupe.Sum(buf[pack.RecordHeaderSize:])
	return buf, nil
}

// Open decrypts the payload of a record that was read: record is its header and payload
// as they stand in the pack, r its decoded header. The payload, without what stands before the content, is appended to dst; with nil it takes the place of the ciphertext in record. The header in record is changed.
//
// dedupe.ErrNoKey when r names a key that is not among these; dedupe.ErrCorrupt when the
// payload or the header is not what was sealed, and then nothing is returned of it.
func (k *Keys) Open(r *pack.Record, record, dst []byte) ([]byte, error) {
	if r.Cipher != pack.CipherXAES {
		return nil, fmt.Errorf("record with cipher %d: %w", r.Cipher, dedupe.ErrUnknownFormat)
	}
	d := k.dataKey(r)
	if d == nil {
		return nil, fmt.Errorf("sealed by key %x of domain %x: %w", r.KeyID, r.Domain, dedupe.ErrNoKey)
	}
	if len(record) != pack.RecordHeaderSize+int(r.StoredLength) || r.StoredLength-min(r.StoredLength, r.HeadLength) < Overhead {
		return nil, fmt.Errorf("sealed record of %d bytes: %w", len(record), dedupe.ErrCorrupt)
	}
	header, payload := record[:pack.RecordHeaderSize], record[pack.RecordHeaderSize+int(r.HeadLength):]
	pack.ClearUnauthenticated(header)
	if dst == nil {
		dst = payload[:0]
	}
	plain, err := d.cipher.open(dst, header[pack.NonceOffset:][:nonceSize], payload, header)
	if err != nil {
		return nil, fmt.Errorf("payload or header is not what was sealed: %w", dedupe.ErrCorrupt)
	}
	return plain, nil
}

// OpenList decrypts a block's list of grains in its place: record is the header and what
// stands before the content, r the decoded header. The header in record is changed. The
// errors are those of Open; the caller compares the list with the block's digest.
func (k *Keys) OpenList(r *pack.Record, record []byte) ([]byte, error) {
	d := k.dataKey(r)
	if d == nil {
		return nil, fmt.Errorf("sealed by key %x of domain %x: %w", r.KeyID, r.Domain, dedupe.ErrNoKey)
	}
	if !r.HasGrainList || r.Cipher != pack.CipherXAES || len(record) != pack.RecordHeaderSize+int(r.HeadLength) {
		return nil, fmt.Errorf("record of %d bytes has no sealed list: %w", len(record), dedupe.ErrCorrupt)
	}
	header, list := record[:pack.RecordHeaderSize], record[pack.RecordHeaderSize:]
	nonce := header[pack.NonceOffset:][:nonceSize]
	pack.ClearUnauthenticated(header)
	listNonce := listNonce(nonce)
	plain, err := d.cipher.aead(nonce).Open(list[:0], listNonce[:], list, header)
	if err != nil {
		return nil, fmt.Errorf("list of grains or header is not what was sealed: %w", dedupe.ErrCorrupt)
	}
	return plain, nil
}

// listNonce is the nonce of a block's list of grains: the other of the two that are used
// under the key that a record's nonce gives.
func listNonce(nonce []byte) (n [nonceSize - 12]byte) {
	copy(n[:], nonce[12:])
	n[len(n)-1] ^= 0xff
	return n
}

func (k *Keys) dataKey(r *pack.Record) *dataKey {
	if r.Domain != k.domain {
		return nil
	}
	for _, d := range k.dataKeys() {
		if d.id == r.KeyID {
			return d
		}
	}
	return nil
}
