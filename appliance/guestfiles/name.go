package guestfiles

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Escape writes a name so that it does no harm on a terminal and is one line: as it is
// when it has printable characters only, otherwise as a shell reads it back, $'a\nb'.
func Escape(name []byte) string {
	plain := len(name) > 0 && name[0] != '$'
	for i := 0; i < len(name) && plain; {
		r, n := utf8.DecodeRune(name[i:])
		plain = (r != utf8.RuneError || n > 1) && unicode.IsPrint(r)
		i += n
	}
	if plain {
		return string(name)
	}
	var b strings.Builder
	b.WriteString("$'")
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRune(name[i:])
		switch {
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\'' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == utf8.RuneError && n == 1 || !unicode.IsPrint(r):
			for _, c := range name[i : i+n] {
				fmt.Fprintf(&b, `\%03o`, c)
			}
		default:
			b.WriteRune(r)
		}
		i += n
	}
	b.WriteString("'")
	return b.String()
}

// similar says whether two names differ by one character left out, put in, changed or
// swapped with its neighbour.
func similar(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	if len(a) < 3 || len(b)-len(a) > 1 {
		return false
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	switch {
	case len(a) != len(b):
		return a[i:] == b[i+1:]
	case i == len(a):
		return false // the same name
	case a[i+1:] == b[i+1:]:
		return true
	}
	return i+1 < len(a) && a[i] == b[i+1] && a[i+1] == b[i] && a[i+2:] == b[i+2:]
}

// Match says whether a name matches a pattern: * is any characters but a slash, **
// any characters, ? one byte but a slash, [a-z] and [!a-z] a byte of a set, \ takes
// the special meaning from what follows. A pattern that is not well formed is an error
// of [CheckPattern].
func Match(pattern, name string) bool {
	// The last * is where to go on after a mismatch: time is bounded by the product
	// of the lengths for one kind of star, and ** and * are kept apart.
	return match(pattern, name, make(map[[2]int]bool))
}

// match remembers where it failed, so that many stars cost no more than the product of
// the lengths.
func match(pattern, name string, failed map[[2]int]bool) bool {
	for len(pattern) > 0 {
		switch pattern[0] {
		case '*':
			deep := strings.HasPrefix(pattern, "**")
			rest := strings.TrimLeft(pattern, "*")
			at := [2]int{len(rest), len(name)}
			if failed[at] {
				return false
			}
			for i := 0; i <= len(name); i++ {
				if match(rest, name[i:], failed) {
					return true
				}
				if i < len(name) && name[i] == '/' && !deep {
					break
				}
			}
			failed[at] = true
			return false
		case '?':
			if name == "" || name[0] == '/' {
				return false
			}
			pattern, name = pattern[1:], name[1:]
		case '[':
			if name == "" || name[0] == '/' {
				return false
			}
			ok, n := matchSet(pattern, name[0])
			if !ok {
				return false
			}
			pattern, name = pattern[n:], name[1:]
		default:
			if pattern[0] == '\\' && len(pattern) > 1 {
				pattern = pattern[1:]
			}
			if name == "" || name[0] != pattern[0] {
				return false
			}
			pattern, name = pattern[1:], name[1:]
		}
	}
	return name == ""
}

// matchSet matches c with the set at the start of the pattern, and gives its length; 0
// when it is not closed.
func matchSet(pattern string, c byte) (ok bool, n int) {
	i := 1
	not := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if not {
		i++
	}
	for first := true; i < len(pattern) && (pattern[i] != ']' || first); first = false {
		lo := pattern[i]
		if lo == '\\' && i+1 < len(pattern) {
			i++
			lo = pattern[i]
		}
		i++
		hi := lo
		if i+1 < len(pattern) && pattern[i] == '-' && pattern[i+1] != ']' {
			hi = pattern[i+1]
			i += 2
		}
		ok = ok || lo <= c && c <= hi
	}
	if i >= len(pattern) {
		return false, 0
	}
	return ok != not, i + 1
}

// CheckPattern says what is wrong with a pattern.
func CheckPattern(pattern string) error {
	if pattern == "" {
		return fmt.Errorf("the pattern is empty")
	}
	for i := 0; i < len(pattern); i++ {
		switch pattern[i] {
		case '\\':
			i++
		case '[':
			_, n := matchSet(pattern[i:], 0)
			if n == 0 {
				return fmt.Errorf("pattern %q: the [ at %d is not closed; \\[ is the character itself", pattern, i+1)
			}
			i += n - 1
		}
	}
	return nil
}
