package lvm

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bounds of a metadata text. LVM's own are far below: sections lie four deep.
const (
	maxTextDepth = 16
	maxTextNodes = 1 << 18
)

// section is `name { ... }` of the text: values and sections by their names.
type section struct {
	values   map[string]value
	sections map[string]*section
	order    []string // names of sections, as they stand in the text
}

// value is a string, a number (int64) or a list ([]value).
type value any

func newSection() *section {
	return &section{values: map[string]value{}, sections: map[string]*section{}}
}

func (s *section) text(name string) string {
	v, _ := s.values[name].(string)
	return v
}

// number gives a value that must be there and lie in [0, limit].
func (s *section) number(name string, limit int64) (int64, error) {
	v, ok := s.values[name].(int64)
	switch {
	case !ok:
		return 0, fmt.Errorf("metadata lacks the number %q: %w", name, ErrCorrupt)
	case v < 0 || v > limit:
		return 0, fmt.Errorf("metadata has %s = %d, which is not within 0 to %d: %w", name, v, limit, ErrCorrupt)
	}
	return v, nil
}

// list gives the strings of a list; a single string counts as a list of one.
func (s *section) list(name string) []string {
	switch v := s.values[name].(type) {
	case string:
		return []string{v}
	case []value:
		var out []string
		for _, e := range v {
			if t, ok := e.(string); ok {
				out = append(out, t)
			}
		}
		return out
	}
	return nil
}

func (s *section) has(name, flag string) bool {
	for _, f := range s.list(name) {
		if f == flag {
			return true
		}
	}
	return false
}

// parser reads LVM's configuration text: sections in braces, `name = value` with
// strings in quotes, numbers and lists, and comments from # to the end of the line.
type parser struct {
	text  string
	at    int
	nodes int
}

var errText = errors.New("metadata text is not well formed")

func parseText(text string) (*section, error) {
	p := &parser{text: text}
	s := newSection()
	if err := p.body(s, 0); err != nil {
		line := 1 + strings.Count(p.text[:min(p.at, len(p.text))], "\n")
		return nil, fmt.Errorf("%w in line %d: %w: %w", errText, line, err, ErrCorrupt)
	}
	return s, nil
}

// body reads entries up to the closing brace, or to the end at depth 0.
func (p *parser) body(s *section, depth int) error {
	if depth > maxTextDepth {
		return errors.New("sections lie too deep")
	}
	for {
		p.space()
		switch {
		case p.at == len(p.text):
			if depth > 0 {
				return errors.New("a section does not end")
			}
			return nil
		case p.text[p.at] == '}' && depth > 0:
			p.at++
			return nil
		}
		if err := p.entry(s, depth); err != nil {
			return err
		}
	}
}

func (p *parser) entry(s *section, depth int) error {
	if p.nodes++; p.nodes > maxTextNodes {
		return errors.New("it has too many entries")
	}
	name, err := p.name()
	if err != nil {
		return err
	}
	p.space()
	if p.at == len(p.text) {
		return fmt.Errorf("nothing follows %q", name)
	}
	_, isValue := s.values[name]
	if isValue || s.sections[name] != nil {
		return fmt.Errorf("%q is there twice", name)
	}
	switch p.text[p.at] {
	case '{':
		p.at++
		child := newSection()
		s.sections[name] = child
		s.order = append(s.order, name)
		return p.body(child, depth+1)
	case '=':
		p.at++
		p.space()
		v, err := p.value(true)
		if err != nil {
			return err
		}
		s.values[name] = v
		return nil
	}
	return fmt.Errorf("%q is followed by %q", name, p.text[p.at])
}

// space skips blanks and comments.
func (p *parser) space() {
	for p.at < len(p.text) {
		switch p.text[p.at] {
		case ' ', '\t', '\n', '\r', 0:
			p.at++
		case '#':
			end := strings.IndexByte(p.text[p.at:], '\n')
			if end < 0 {
				end = len(p.text) - p.at
			}
			p.at += end
		default:
			return
		}
	}
}

func isName(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_-.+", c) >= 0
}

func (p *parser) name() (string, error) {
	start := p.at
	for p.at < len(p.text) && isName(p.text[p.at]) {
		p.at++
	}
	if p.at == start {
		return "", fmt.Errorf("a name is expected before %q", p.text[p.at])
	}
	return p.text[start:p.at], nil
}

func (p *parser) value(listAllowed bool) (value, error) {
	if p.at == len(p.text) {
		return nil, errors.New("a value is missing")
	}
	if p.nodes++; p.nodes > maxTextNodes {
		return nil, errors.New("it has too many values")
	}
	switch c := p.text[p.at]; {
	case c == '"':
		return p.quoted()
	case c == '[' && listAllowed:
		p.at++
		return p.list()
	case c == '-' || c >= '0' && c <= '9':
		return p.numeral()
	default:
		return nil, fmt.Errorf("a value cannot begin with %q", c)
	}
}

func (p *parser) quoted() (value, error) {
	var b strings.Builder
	for p.at++; p.at < len(p.text); p.at++ {
		switch c := p.text[p.at]; c {
		case '"':
			p.at++
			return b.String(), nil
		case '\\':
			if p.at++; p.at == len(p.text) {
				return nil, errors.New("a string does not end")
			}
			b.WriteByte(p.text[p.at])
		default:
			b.WriteByte(c)
		}
	}
	return nil, errors.New("a string does not end")
}

func (p *parser) numeral() (value, error) {
	start := p.at
	for p.at++; p.at < len(p.text) && (p.text[p.at] >= '0' && p.text[p.at] <= '9' || p.text[p.at] == '.'); p.at++ {
	}
	word := p.text[start:p.at]
	if strings.Contains(word, ".") { // no field that is read here has one
		f, err := strconv.ParseFloat(word, 64)
		if err != nil || math.Abs(f) > math.MaxInt32 {
			return nil, fmt.Errorf("%q is not a number", word)
		}
		return int64(f), nil
	}
	n, err := strconv.ParseInt(word, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("%q is not a number", word)
	}
	return n, nil
}

func (p *parser) list() (value, error) {
	out := []value{}
	for {
		p.space()
		if p.at == len(p.text) {
			return nil, errors.New("a list does not end")
		}
		if p.text[p.at] == ']' {
			p.at++
			return out, nil
		}
		if len(out) > 0 {
			if p.text[p.at] != ',' {
				return nil, fmt.Errorf("a list has %q where a comma should be", p.text[p.at])
			}
			p.at++
			p.space()
			if p.at < len(p.text) && p.text[p.at] == ']' {
				continue
			}
		}
		v, err := p.value(false)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
}
