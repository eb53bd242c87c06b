package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// minVerifyEvery is the shortest period that makes sense to anybody.
const minVerifyEvery = time.Second

// VerifyPeriod is VerifyEvery as a duration: 0 when it is not set, negative for "never".
func (c Config) VerifyPeriod() (time.Duration, error) {
	switch c.VerifyEvery {
	case "":
		return 0, nil
	case "never":
		return -1, nil
	}
	d, err := time.ParseDuration(c.VerifyEvery)
	if days, ok := strings.CutSuffix(c.VerifyEvery, "d"); ok {
		var n int
		n, err = strconv.Atoi(days)
		d = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || d < minVerifyEvery || d > 10*365*24*time.Hour {
		return 0, fmt.Errorf("%q is no period, such as 7d or 12h, nor never", c.VerifyEvery)
	}
	return d, nil
}
