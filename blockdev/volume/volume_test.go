package volume_test

import (
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelblock/keelblock/blockdev/volume"
)

const mib = 1 << 20

func list(t *testing.T, m *image) ([]volume.Volume, []string) {
	t.Helper()
	v, w, err := volume.List(m, m.size)
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	return v, w
}

func wantWarning(t *testing.T, warnings []string, part string) {
	t.Helper()
	for _, w := range warnings {
		if strings.Contains(w, part) {
			return
		}
	}
	t.Errorf("no warning has %q: %q", part, warnings)
}

const linuxGUID = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"

func TestGPTIsRead(t *testing.T) {
	for _, ss := range []int64{512, 4096} {
		m := newImage(64 * mib)
		m.gpt(ss, gptPart{"root", 2048, 4095}, gptPart{"données €😀", 4096, 8191})
		got, warnings := list(t, m)
		want := []volume.Volume{
			{Number: 1, Scheme: "gpt", Name: "root", TypeGUID: linuxGUID, UUID: "00000001-0000-0000-0000-000000000000", Offset: 2048 * ss, Size: 2048 * ss},
			{Number: 2, Scheme: "gpt", Name: "données €😀", TypeGUID: linuxGUID, UUID: "00000002-0000-0000-0000-000000000000", Offset: 4096 * ss, Size: 4096 * ss},
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("blocks of %d: %s", ss, d)
		}
		if len(warnings) != 0 {
			t.Errorf("blocks of %d: warnings %q", ss, warnings)
		}
	}
}

func TestBackupGPTStandsInForADamagedPrimary(t *testing.T) {
	for name, damage := range map[string]func(m *image){
		"header":    func(m *image) { m.sector(1)[60] ^= 1 },
		"signature": func(m *image) { m.sector(1)[0] ^= 1 },
		"entries":   func(m *image) { m.sector(2)[40] ^= 1 },
		"wiped": func(m *image) {
			for s := range int64(40) {
				delete(m.data, s)
			}
		},
	} {
		m := newImage(64 * mib)
		m.gpt(512, gptPart{"root", 2048, 4095})
		damage(m)
		got, warnings := list(t, m)
		if len(got) != 1 || got[0].Offset != 2048*512 || got[0].Name != "root" {
			t.Errorf("%s: %+v", name, got)
		}
		wantWarning(t, warnings, "backup at the end")
	}
}

func TestDamagedBackupGPTIsOnlyAWarning(t *testing.T) {
	m := newImage(64 * mib)
	m.gpt(512, gptPart{"root", 2048, 4095})
	m.sector(64*mib/512 - 1)[60] ^= 1
	got, warnings := list(t, m)
	if len(got) != 1 {
		t.Errorf("%+v", got)
	}
	wantWarning(t, warnings, "backup GPT is damaged")
}

func TestBothGPTsDamagedIsNoVolume(t *testing.T) {
	m := newImage(64 * mib)
	m.gpt(512, gptPart{"root", 2048, 4095})
	m.sector(1)[60] ^= 1
	m.sector(64*mib/512 - 1)[60] ^= 1
	got, warnings := list(t, m)
	if len(got) != 0 {
		t.Errorf("%+v", got)
	}
	wantWarning(t, warnings, "neither the GPT nor its backup")
}

func TestUnannouncedGPTLosesToMBR(t *testing.T) {
	m := newImage(64 * mib)
	m.gpt(512, gptPart{"old", 2048, 4095})
	delete(m.data, 0)
	m.bootRecord(0, entry{0x83, 8192, 100})
	got, warnings := list(t, m)
	if len(got) != 1 || got[0].Scheme != "mbr" || got[0].Offset != 8192*512 {
		t.Errorf("%+v", got)
	}
	wantWarning(t, warnings, "does not announce")
}

func TestPartitionOutsideTheDiskIsLeftOut(t *testing.T) {
	m := newImage(8 * mib)
	m.bootRecord(0, entry{0x83, 2048, 100}, entry{0x83, 4096, 0xFFFFFFFF}, entry{0x83, 0xFFFFFF00, 0xFF})
	got, warnings := list(t, m)
	if len(got) != 1 || got[0].Number != 1 {
		t.Errorf("%+v", got)
	}
	wantWarning(t, warnings, "partition 2 is left out")
	wantWarning(t, warnings, "partition 3 is left out")
}

func TestOverlapIsAWarning(t *testing.T) {
	m := newImage(8 * mib)
	m.bootRecord(0, entry{0x83, 2048, 100}, entry{0x83, 2100, 100})
	got, warnings := list(t, m)
	if len(got) != 2 {
		t.Errorf("%+v", got)
	}
	wantWarning(t, warnings, "overlap")
}

func TestLogicalPartitions(t *testing.T) {
	m := newImage(64 * mib)
	m.bootRecord(0, entry{0x83, 2048, 2048}, entry{0x0F, 8192, 65536}, entry{0x82, 4096, 100})
	m.bootRecord(8192, entry{0x83, 2048, 4096}, entry{0x05, 10000, 4096})
	m.bootRecord(18192, entry{0x07, 63, 1000}, entry{0x05, 20000, 4096})
	m.bootRecord(28192, entry{0x83, 63, 65}, entry{})
	copy(m.sector(0)[440:], "\x04\x03\x02\xa1")
	got, warnings := list(t, m)
	want := []volume.Volume{
		{Number: 1, Scheme: "mbr", TypeCode: 0x83, UUID: "a1020304-01", Offset: 2048 * 512, Size: 2048 * 512},
		{Number: 3, Scheme: "mbr", TypeCode: 0x82, UUID: "a1020304-03", Offset: 4096 * 512, Size: 100 * 512},
		{Number: 5, Scheme: "mbr", TypeCode: 0x83, UUID: "a1020304-05", Offset: 10240 * 512, Size: 4096 * 512},
		{Number: 6, Scheme: "mbr", TypeCode: 0x07, UUID: "a1020304-06", Offset: 18255 * 512, Size: 1000 * 512},
		{Number: 7, Scheme: "mbr", TypeCode: 0x83, UUID: "a1020304-07", Offset: 28255 * 512, Size: 65 * 512},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if len(warnings) != 0 {
		t.Errorf("warnings %q", warnings)
	}
}

func TestCyclicChainOfLogicalPartitionsIsRefused(t *testing.T) {
	m := newImage(64 * mib)
	m.bootRecord(0, entry{0x83, 2048, 2048}, entry{0x05, 8192, 65536})
	m.bootRecord(8192, entry{0x83, 63, 100}, entry{0x05, 10000, 4096})
	m.bootRecord(18192, entry{0x83, 63, 100}, entry{0x05, 0, 4096})
	got, warnings := list(t, m)
	if len(got) != 3 {
		t.Errorf("%+v", got)
	}
	wantWarning(t, warnings, "cyclic")
}

func TestLongChainOfLogicalPartitionsIsBounded(t *testing.T) {
	m := newImage(64 * mib)
	m.bootRecord(0, entry{0x05, 1, 100000})
	for i := range uint32(5000) {
		m.bootRecord(int64(1+2*i), entry{0x83, 1, 1}, entry{0x05, 2 * (i + 1), 1})
	}
	got, warnings := list(t, m)
	if len(got) != volume.MaxPartitions {
		t.Errorf("%d volumes", len(got))
	}
	wantWarning(t, warnings, "more than 256")
}

func TestDiskWithoutTableIsOneVolume(t *testing.T) {
	blank := newImage(8 * mib)
	ntfs := newImage(8 * mib)
	ntfs.write(0, []byte("\xEBR\x90NTFS    "))
	for i := range 60 { // the boot code of a FAT or NTFS volume stands where the table would
		ntfs.sector(0)[446+i] = byte(0x41 + i)
	}
	binary.LittleEndian.PutUint16(ntfs.sector(0)[510:], 0xAA55)
	for name, m := range map[string]*image{"blank": blank, "ntfs": ntfs} {
		got, warnings := list(t, m)
		want := []volume.Volume{{Scheme: "whole", Size: 8 * mib}}
		if d := cmp.Diff(want, got); d != "" || len(warnings) != 0 {
			t.Errorf("%s: %s %q", name, d, warnings)
		}
	}
}

// A GPT at the end that outlived a new file system on the whole disk is not used.
func TestStaleBackupGPTIsNotUsed(t *testing.T) {
	m := newImage(8 * mib)
	m.gpt(512, gptPart{"old", 2048, 4095})
	for s := range int64(40) {
		delete(m.data, s)
	}
	m.write(1024+56, []byte{0x53, 0xEF})
	got, _ := list(t, m)
	if len(got) != 1 || got[0].Scheme != "whole" {
		t.Errorf("%+v", got)
	}
}

func TestErrors(t *testing.T) {
	if _, _, err := volume.List(newImage(100), 100); !errors.Is(err, volume.ErrTooSmall) {
		t.Errorf("tiny disk: %v", err)
	}
	m := newImage(8 * mib)
	m.size = 4096 // the reader ends before the size that is told
	m.bootRecord(0, entry{0x05, 100, 1000})
	if _, _, err := volume.List(m, 8*mib); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short reader: %v", err)
	}
}

func TestSectionIsTheRange(t *testing.T) {
	m := newImage(8 * mib)
	m.bootRecord(0, entry{0x83, 2048, 2})
	m.write(2048*512, []byte("first"))
	got, _ := list(t, m)
	p, err := io.ReadAll(got[0].Section(m))
	if err != nil || len(p) != 1024 || string(p[:5]) != "first" {
		t.Errorf("%d bytes, %q, %v", len(p), p[:5], err)
	}
}
