package cli

import (
	"strconv"
	"strings"

	"github.com/keelblock/keelblock/appliance/config"
)

// units of what is shown, largest first.
var units = []struct {
	name  string
	bytes int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

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
	n, err := config.ParseSize(s)
	*v = sizeValue(n)
	return err
}

// Type implements pflag.Value.
func (v *sizeValue) Type() string { return "SIZE" }

// count is a number of things: 1 point, 2 points.
func count(n int64, what string) string {
	if n != 1 {
		what += "s"
	}
	return strconv.FormatInt(n, 10) + " " + what
}

// human is a size as a person reads it: 512 B, 1.5 GiB, 2 TiB.
func human(n int64) string {
	for _, u := range units {
		if n >= u.bytes || n <= -u.bytes {
			s := strconv.FormatFloat(float64(n)/float64(u.bytes), 'f', 1, 64)
			return strings.TrimSuffix(s, ".0") + " " + u.name
		}
	}
	return strconv.FormatInt(n, 10) + " B"
}
