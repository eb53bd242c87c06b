package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSessionOfTheREADME types the session of the README as it stands, save that its
// folders are the test's and that the program is the one under test.
func TestSessionOfTheREADME(t *testing.T) {
	need(t, "bash", "qemu-img", "mke2fs")
	needMount(t)
	text, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var session string
	for i, block := range strings.Split(string(text), "\n```") {
		if i%2 == 1 && strings.Contains(block, "keelblock serve -d") && strings.Contains(block, "keelblock stop") {
			session = block
			break
		}
	}
	if session == "" {
		t.Fatal("the README has no session")
	}
	dir := home(t)
	session = strings.ReplaceAll(session, "/tmp/kb-files", dir+"/files")
	session = strings.ReplaceAll(session, "/tmp/kb", dir+"/d")
	first, rest, _ := strings.Cut(strings.TrimLeft(session, "\n"), "\n")
	if !strings.Contains(first, "make") {
		t.Fatalf("the session begins with %q and not by building", first)
	}
	out := must(t, dir, "bash", "-eux", "-o", "pipefail", "-c", rest)
	lines := strings.Split(out, "\n")
	if !strings.HasPrefix(lines[0], "ready pid=") && !strings.HasPrefix(lines[1], "ready pid=") {
		t.Errorf("output:\n%s", out)
	}
	want, err := os.ReadFile("/etc/hostname")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "hostname")); err != nil || string(got) != string(want) {
		t.Errorf("the restored file holds %q (%v), want %q", got, err, want)
	}
	if p := processesOf(dir); len(p) > 0 {
		t.Errorf("processes %v go on after the session", p)
	}
	if m := mountsBelow(dir); len(m) > 0 {
		t.Errorf("%v are still mounted", m)
	}
}
