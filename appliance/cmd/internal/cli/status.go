package cli

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "one screen: disks, machines, last points, alerts, space", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.appliance.Status(cmd.Context(), connect.NewRequest(&kb.StatusRequest{}))
			if err != nil {
				return err
			}
			return a.print(toStatus(r.Msg), func(w io.Writer) { a.statusScreen(w, r.Msg, time.Now()) })
		},
	}
}

// vaultOpen is the state of a vault whose points can be read.
const vaultOpen = "open"

// statusLines bounds the lines of each part of the screen.
const statusLines = 12

func (a *app) statusScreen(w io.Writer, s *kb.StatusResponse, now time.Time) {
	up := ""
	if s.GetStartedAt() != nil {
		up = ", up " + short(now.Sub(s.GetStartedAt().AsTime()))
	}
	fmt.Fprintf(w, "keelblock %s, site %s, pid %d%s, %s\n", s.GetVersion(), s.GetSiteName(), s.GetPid(), up, s.GetDataDir())
	tls := ""
	if s.GetNbdTls() != "" {
		tls = " (TLS " + s.GetNbdTls() + " over TCP)"
	}
	fmt.Fprintf(w, "api %s  nbd %s%s\n\n", s.GetApiUri(), strings.Join(s.GetNbdUris(), " "), tls)

	last := make(map[string]*kb.RecoveryPoint)
	for _, p := range s.GetLastPoints() {
		last[p.GetMachineName()] = p
	}
	var rows [][]string
	for _, m := range s.GetMachines() {
		point, when, label := "", "never", ""
		if s.GetVault().GetState() != vaultOpen {
			when = "not known"
		}
		if p := last[m.GetName()]; p != nil {
			point, when, label = p.GetId()[:min(12, len(p.GetId()))], age(now, p.GetFrozenAt()), p.GetConsistency()
		}
		rows = append(rows, []string{"  " + m.GetName(), diskNames(m.GetDisks()), when, label, point})
	}
	section(w, "machines", []string{"  NAME", "DISKS", "LAST POINT", "LABEL", "ID"}, rows)

	rows = nil
	for _, d := range s.GetDisks() {
		next := nextBackup(d)
		if d.GetReason() != "" {
			next = d.GetReason()
		}
		rows = append(rows, []string{"  " + d.GetName(), human(d.GetSizeBytes()), human(d.GetAllocatedBytes()), d.GetState(),
			fmt.Sprint(d.GetConnections()), next})
	}
	section(w, "disks", []string{"  NAME", "SIZE", "ALLOCATED", "STATE", "CLIENTS", "NEXT BACKUP"}, rows)

	rows = nil
	for _, j := range s.GetRunningJobs() {
		rows = append(rows, []string{"  " + j.GetJobId(), jobTitle(j), human(j.GetDoneBytes()), j.GetDetail()})
	}
	if len(rows) > 0 {
		section(w, "running jobs", nil, rows)
	}

	v := s.GetVault()
	fmt.Fprintf(w, "vault %s: %s, ", v.GetName(), v.GetState())
	if v.GetState() == vaultOpen { // else what it holds is not known
		fmt.Fprintf(w, "%s (%d soft-deleted), %s in %s for %s protected, ",
			count(v.GetPoints(), "point"), v.GetDeletedPoints(), human(v.GetPackBytes()), count(v.GetPacks(), "pack"), human(v.GetProtectedBytes()))
	}
	fmt.Fprintf(w, "%s free\n", human(v.GetFreeBytes()))
	if v.GetReason() != "" {
		fmt.Fprintf(w, "  %s\n", v.GetReason())
	}
	if n := v.GetCorruptBlocks(); n > 0 {
		fmt.Fprintf(w, "  %s; see keelblock recovery-point verify --all\n", count(n, "corrupt block"))
	}
	if len(s.GetAlerts()) == 0 {
		fmt.Fprintln(w, "alerts: none")
	}
	for _, al := range s.GetAlerts() {
		since := ""
		if al.GetSince() != nil {
			since = " (" + age(now, al.GetSince()) + ")"
		}
		fmt.Fprintf(w, "alert %s %s: %s%s\n", al.GetSeverity(), al.GetObjectName(), al.GetText(), since)
	}
}

// section prints a bounded table with a title.
func section(w io.Writer, title string, heading []string, rows [][]string) {
	if len(rows) == 0 {
		fmt.Fprintf(w, "%s: none\n\n", title)
		return
	}
	fmt.Fprintf(w, "%s:\n", title)
	more := len(rows) - statusLines
	if more > 0 {
		rows = rows[:statusLines]
	}
	if heading != nil {
		rows = append([][]string{heading}, rows...)
	}
	(&app{}).table(w, "", rows)
	if more > 0 {
		fmt.Fprintf(w, "  and %d more\n", more)
	}
	fmt.Fprintln(w)
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := versionShape{a.Version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			return a.print(v, func(w io.Writer) { fmt.Fprintf(w, "keelblock %s (%s, %s)\n", v.Version, v.GoVersion, v.Platform) })
		},
	}
}

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "check this machine and the daemon, and say what to do", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			findings := localFindings()
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.appliance.Doctor(cmd.Context(), connect.NewRequest(&kb.DoctorRequest{}))
			if err != nil {
				findings = append(findings, findingShape{"daemon", "fail", plain(err)})
			} else {
				findings = append(findings, mapped(r.Msg.GetFindings(), toFinding)...)
			}
			failed := 0
			for _, f := range findings {
				if f.Result == "fail" {
					failed++
				}
			}
			err = a.print(findings, func(w io.Writer) {
				for _, f := range findings {
					fmt.Fprintf(w, "%-4s  %s: %s\n", f.Result, f.Check, f.Text)
				}
			})
			if err == nil && failed > 0 {
				err = fmt.Errorf("%d of %d checks failed", failed, len(findings))
			}
			return err
		},
	}
}

// localFindings checks what the command line itself needs.
func localFindings() []findingShape {
	tool := func(name, pkg, use string) findingShape {
		if path, err := exec.LookPath(name); err == nil {
			return findingShape{name, "ok", path}
		}
		return findingShape{name, "warn", fmt.Sprintf("not installed; %s needs it: apt install %s", use, pkg)}
	}
	f := []findingShape{
		tool("qemu-img", "qemu-utils", "disk import of qcow2, vmdk, vhd and vhdx"),
		tool("fusermount3", "fuse3", "keelblock mount by an ordinary user"),
	}
	fuse := findingShape{"/dev/fuse", "ok", "all users may mount"}
	switch st, err := os.Stat("/dev/fuse"); {
	case err != nil:
		fuse.Result, fuse.Text = "warn", "missing; keelblock mount needs it: modprobe fuse"
	case st.Mode().Perm()&0o006 != 0o006:
		fuse.Text = "root may mount; for ordinary users: chmod 666 /dev/fuse"
	}
	return append(f, fuse)
}
