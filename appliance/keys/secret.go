package keys

import (
	"crypto/rand"
	"crypto/sha256"
	"strings"
)

// A recovery secret that we make is 125 random bits and 25 bits of checksum, as thirty
// letters in six groups of five, in the alphabet of Crockford's base 32
// (https://www.crockford.com/base32.html): no I, L, O, U, and either case. Argon2id is
// spent on it all the same, as a secret may also be the operator's own.
const (
	alphabet     = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	secretDigits = 25
	checkDigits  = 5
	groupDigits  = 5
)

// newSecret makes a recovery secret.
func newSecret() string {
	raw := make([]byte, secretDigits)
	rand.Read(raw) // never fails
	digits := make([]byte, secretDigits, secretDigits+checkDigits)
	for i, b := range raw {
		digits[i] = alphabet[b%32] // 256 is a multiple of 32: all are equally likely
	}
	digits = append(digits, checkOf(digits)...)
	var groups []string
	for i := 0; i < len(digits); i += groupDigits {
		groups = append(groups, string(digits[i:i+groupDigits]))
	}
	return strings.Join(groups, "-")
}

func checkOf(digits []byte) []byte {
	sum := sha256.Sum256(append([]byte("keelblock recovery secret "), digits...))
	out := make([]byte, checkDigits)
	for i := range out {
		out[i] = alphabet[sum[i]%32]
	}
	return out
}

// canonical is a secret as it was typed, in the form that is used: one of ours with its
// groups in order, any other as it stands, without the line's end. mistyped says that it
// looks like one of ours and its checksum is wrong.
func canonical(typed string) (secret string, mistyped bool) {
	typed = strings.TrimRight(typed, "\r\n")
	s := strings.NewReplacer("-", "", " ", "", "\t", "", "O", "0", "I", "1", "L", "1").Replace(strings.ToUpper(typed))
	if len(s) != secretDigits+checkDigits || strings.Trim(s, alphabet) != "" {
		return typed, false
	}
	if string(checkOf([]byte(s[:secretDigits]))) != s[secretDigits:] {
		return typed, true
	}
	var groups []string
	for i := 0; i < len(s); i += groupDigits {
		groups = append(groups, s[i:i+groupDigits])
	}
	return strings.Join(groups, "-"), false
}
