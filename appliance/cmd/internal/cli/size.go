package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

var units = []struct {
	name  string
	bytes int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// parseSize reads 64MiB, 8GiB, 1TiB or plain bytes.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "BKMGTPibkmgtp")
	unit := s[len(digits):]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("size %q is not a number of bytes, KiB, MiB, GiB or TiB", s)
	}
	factor := int64(1)
	if unit != "" {
		factor = 0
		for _, u := range units {
			if unit == u.name {
				factor = u.bytes
			}
		}
	}
	if factor == 0 {
		return 0, fmt.Errorf("size %q: unit %q is none of B, KiB, MiB, GiB, TiB", s, unit)
	}
	if n > math.MaxInt64/factor {
		return 0, fmt.Errorf("size %q is too large", s)
	}
	return n * factor, nil
}

// sizeValue is a flag that takes a size.
type sizeValue int64

// String implements pflag.Value.
func (v *sizeValue) String() string {
	if *v == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*v), 10)
}

// Set implements pflag.Value.
func (v *sizeValue) Set(s string) error {
	n, err := parseSize(s)
	*v = sizeValue(n)
	return err
}

// Type implements pflag.Value.
func (v *sizeValue) Type() string { return "SIZE" }

// human is a size as a person reads it: 512 B, 1.5 GiB, 2 TiB.
func human(n int64) string {
	for _, u := range units[:4] {
		if n >= u.bytes || n <= -u.bytes {
			s := strconv.FormatFloat(float64(n)/float64(u.bytes), 'f', 1, 64)
			return strings.TrimSuffix(s, ".0") + " " + u.name
		}
	}
	return strconv.FormatInt(n, 10) + " B"
}
