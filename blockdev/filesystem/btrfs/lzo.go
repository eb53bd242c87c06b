package btrfs

// lzo1x appends to out what p decompresses to, at most limit bytes.
//
// The stream is described in Documentation/staging/lzo.rst of Linux. An instruction
// is a byte and what belongs to it: literals to copy, or a match, which repeats bytes
// at a distance, and with it up to three literals. What an instruction below 16 means
// depends on how many literals were copied last (state; 4 for more than three).
func lzo1x(out, p []byte, limit int) ([]byte, error) {
	z := lzoStream{p: p, out: out, start: len(out), limit: limit}
	if len(p) > 0 && p[0] > 17 {
		z.at = 1
		n := int(p[0]) - 17
		if !z.literals(n) {
			return nil, corruptf("LZO stream is damaged")
		}
		z.state = min(n, 4)
	}
	for {
		end, ok := z.step()
		if !ok {
			return nil, corruptf("LZO stream is damaged")
		}
		if end {
			return z.out, nil
		}
	}
}

type lzoStream struct {
	p     []byte
	at    int
	out   []byte
	start int // of what this stream gives
	limit int
	state int
}

// step does one instruction.
func (z *lzoStream) step() (end, ok bool) {
	c, ok := z.byte()
	if !ok {
		return false, false
	}
	n, distance := 0, 0
	switch {
	case c >= 64:
		h, ok := z.byte()
		if !ok {
			return false, false
		}
		distance = h<<3 + c>>2&7 + 1
		if n = 3 + c>>5&1; c >= 128 {
			n = 5 + c>>5&3
		}
		z.state = c & 3
	case c >= 32:
		n, ok = z.length(c&31, 31)
		d, more := z.word()
		if !ok || !more {
			return false, false
		}
		n, distance, z.state = n+2, d>>2+1, d&3
	case c >= 16:
		n, ok = z.length(c&7, 7)
		d, more := z.word()
		if !ok || !more {
			return false, false
		}
		n, distance, z.state = n+2, 16384+c>>3&1<<14+d>>2, d&3
		if distance == 16384 {
			return true, true
		}
	case z.state == 0:
		n, ok = z.length(c, 15)
		z.state = 4
		return false, ok && z.literals(n+3)
	default:
		h, ok := z.byte()
		if !ok {
			return false, false
		}
		if n, distance = 2, h<<2+c>>2+1; z.state == 4 {
			n, distance = 3, distance+2048
		}
		z.state = c & 3
	}
	return false, z.match(distance, n) && z.literals(z.state)
}

func (z *lzoStream) byte() (int, bool) {
	if z.at >= len(z.p) {
		return 0, false
	}
	z.at++
	return int(z.p[z.at-1]), true
}

func (z *lzoStream) word() (int, bool) {
	low, ok := z.byte()
	high, more := z.byte()
	return low | high<<8, ok && more
}

// length is n, or if that is 0 max and 255 for each zero byte and the byte behind them.
func (z *lzoStream) length(n, max int) (int, bool) {
	if n != 0 {
		return n, true
	}
	for n = max; ; n += 255 {
		b, ok := z.byte()
		if !ok || b != 0 {
			return n + b, ok
		}
	}
}

func (z *lzoStream) room(n int) bool { return n <= z.limit-(len(z.out)-z.start) }

func (z *lzoStream) literals(n int) bool {
	if n > len(z.p)-z.at || !z.room(n) {
		return false
	}
	z.out = append(z.out, z.p[z.at:z.at+n]...)
	z.at += n
	return true
}

func (z *lzoStream) match(distance, n int) bool {
	if distance > len(z.out)-z.start || !z.room(n) {
		return false
	}
	for from := len(z.out) - distance; n > 0; {
		// What is repeated may be what is being written.
		part := z.out[from:min(len(z.out), from+n)]
		z.out = append(z.out, part...)
		from, n = from+len(part), n-len(part)
	}
	return true
}
