package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ParseSize reads 64MiB, 8GiB, 1TiB or plain bytes.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "BKMGTPibkmgtp")
	unit := s[len(digits):]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("size %q is not a number of bytes, KiB, MiB, GiB or TiB", s)
	}
	factor := map[string]int64{"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}[unit]
	if factor == 0 {
		return 0, fmt.Errorf("size %q: unit %q is none of B, KiB, MiB, GiB, TiB", s, unit)
	}
	if n > math.MaxInt64/factor {
		return 0, fmt.Errorf("size %q is too large", s)
	}
	return n * factor, nil
}

// size is a number of bytes in the file: an integer, or a string as flags take it.
type size int64

// UnmarshalTOML implements toml.Unmarshaler.
func (v *size) UnmarshalTOML(value any) error {
	switch value := value.(type) {
	case int64:
		*v = size(value)
		return nil
	case string:
		n, err := ParseSize(value)
		*v = size(n)
		return err
	}
	return fmt.Errorf("%v is no size; write 1073741824 or \"1GiB\"", value)
}
