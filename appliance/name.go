package appliance

import "fmt"

// MaxNameLength bounds the names of disks, machines and exports, in bytes.
const MaxNameLength = 63

// CheckName returns an ErrInvalid unless name is [a-z0-9][a-z0-9._-]{0,62}. noun
// says what is being named.
func CheckName(noun, name string) error {
	bad := func(why string) error {
		return &Error{Op: fmt.Sprintf("check the name of the %s", noun), Kind: ErrInvalid,
			Text: fmt.Sprintf("name %q %s", name, why),
			Hint: "a name is 1 to 63 of a-z 0-9 . _ - and begins with a letter or digit"}
	}
	if name == "" {
		return bad("is empty")
	}
	if len(name) > MaxNameLength {
		return bad("is too long")
	}
	for i := range len(name) {
		c := name[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if alnum || i > 0 && (c == '.' || c == '_' || c == '-') {
			continue
		}
		return bad(fmt.Sprintf("has %q at position %d", c, i+1))
	}
	return nil
}
