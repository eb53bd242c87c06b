package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// shape is what a JSON document must be: the name of a type for a value, a list of
// one element for an array, a map for an object with exactly these fields.
type shape any

type object = map[string]shape

var (
	diskShape = object{"name": "string", "sizeBytes": "int", "allocatedBytes": "int", "role": "string", "machineName": "string",
		"state": "string", "uri": "string", "readOnly": "bool", "dirtyBitmaps": []shape{"string"}}
	machineShape = object{"name": "string", "disks": []shape{diskShape}, "siteName": "string", "role": "string", "generation": "int", "lastPointId": "string"}
	groupShape   = object{"name": "string", "machines": []shape{machineShape}}
	pointShape   = object{"id": "string", "machineName": "string", "cutId": "string", "generation": "int", "sequence": "int", "frozenAt": "time",
		"consistency": "string", "reason": "string", "tracking": "string",
		"disks":     []shape{object{"name": "string", "sizeBytes": "int", "rootDigest": "string"}},
		"readBytes": "int", "changedBytes": "int", "newBytes": "int", "storedBytes": "int", "uniqueBytes": "int", "freezeMicros": "positive", "state": "string",
		"deletedUntil": "time?", "retainUntil": "time?", "lockedUntil": "time?", "held": "bool"}
	jobShape = object{"jobId": "string", "kind": "string", "objectName": "string", "state": "string", "doneBytes": "int", "totalBytes": "int",
		"startedAt": "time", "endedAt": "time?", "error": "string"}
	extentShape = object{"offset": "int", "length": "int"}
	vaultShape  = object{"name": "string", "state": "string", "reason": "string", "points": "int", "deletedPoints": "int", "packs": "int",
		"packBytes": "int", "blocks": "int", "blockSizeBytes": "int", "protectedBytes": "int", "freeBytes": "int", "corruptBlocks": "int",
		"repairedBlocks": "int", "quarantinedBlocks": "int", "damagedPoints": []shape{"string"},
		"locations":      []shape{object{"path": "string", "state": "string", "reason": "string", "packs": "int", "missingPacks": "int", "freeBytes": "int"}},
		"lastCollection": object{"startedAt": "time?", "endedAt": "time?", "outcome": "string", "reason": "string", "freedBytes": "int", "keptBytes": "int", "error": "string"}}
	locationShape     = object{"path": "string", "state": "string", "reason": "string", "packs": "int", "missingPacks": "int", "freeBytes": "int"}
	vaultDetailsShape = object{"name": "string", "state": "string", "reason": "string", "createdAt": "time?", "blockSizeBytes": "int", "redundancy": "string", "compression": "string",
		"locations": []shape{locationShape}, "encryption": "string", "keyKind": "string", "softDeleteSeconds": "int", "minimumRetentionSeconds": "int",
		"immutability": "string", "points": "int", "siteName": "string"}
	usageShape = object{"exact": "bool",
		"machines": []shape{object{"machineName": "string", "vault": "string", "protectionState": "string", "billingState": "string", "protectedBytes": "int",
			"instanceWeight": "number", "uniqueBytes": "int", "sharedBytes": "int", "totalBytes": "int",
			"points": []shape{object{"pointId": "string", "timeName": "string", "uniqueBytes": "int", "sharedBytes": "int", "totalBytes": "int",
				"incrementBytes": "int", "deleted": "bool"}}}},
		"vaults": []shape{object{"vault": "string", "liveBytes": "int", "deletedBytes": "int", "uniqueBytes": "int", "sharedBytes": "int",
			"packBytes": "int", "indexBytes": "int", "copies": "int"}}}
	keyShape = object{"vaultName": "string", "domainId": "string", "kind": "string", "source": "string", "wrappingKeyId": "string",
		"dataKeyIds": []shape{"string"}, "wrappedAt": "time?", "backedUpAt": "time?", "available": "bool", "reason": "string"}
	fileShape = object{"file": "string", "format": "string", "pointId": "string", "diskName": "string", "sizeBytes": "int", "writtenBytes": "int"}
)

// check tells where a value is not of a shape.
func check(path string, want shape, got any) []string {
	bad := func(format string, args ...any) []string { return []string{path + ": " + fmt.Sprintf(format, args...)} }
	switch want := want.(type) {
	case string:
		text, isString := got.(string)
		number, isNumber := got.(json.Number)
		_, isBool := got.(bool)
		switch {
		case want == "number" && isNumber, want == "string" && isString, want == "bool" && isBool, want == "time?" && got == nil:
			return nil
		case (want == "int" || want == "positive" && !strings.HasPrefix(number.String(), "0")) && isNumber && !strings.ContainsAny(number.String(), ".eE-"):
			return nil
		case strings.HasPrefix(want, "time") && isString:
			if at, err := time.Parse(time.RFC3339Nano, text); err != nil || at.Location() != time.UTC {
				return bad("%q is no time in RFC 3339, UTC", text)
			}
			return nil
		}
		return bad("%v is no %s", got, want)
	case []shape:
		list, ok := got.([]any)
		if !ok {
			return bad("%v is no array", got)
		}
		var out []string
		for i, e := range list {
			out = append(out, check(fmt.Sprintf("%s[%d]", path, i), want[0], e)...)
		}
		return out
	case object:
		m, ok := got.(map[string]any)
		if !ok {
			return bad("%v is no object", got)
		}
		var out []string
		for _, k := range slices.Sorted(maps.Keys(want)) {
			if v, ok := m[k]; ok {
				out = append(out, check(path+"."+k, want[k], v)...)
			} else {
				out = append(out, path+"."+k+" is missing")
			}
		}
		for k := range m {
			if _, ok := want[k]; !ok {
				out = append(out, path+"."+k+" should not be there")
			}
		}
		return out
	}
	return bad("the shape %v is unknown", want)
}

// TestJSONIsAsPromised runs the commands in order, with --json, and holds every
// document against its shape.
func TestJSONIsAsPromised(t *testing.T) {
	dir := home(t)
	if err := os.WriteFile(dir+"/secret", []byte("a recovery secret of mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/disk.raw", []byte(strings.Repeat("x", 1<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	ready := object{"pid": "int", "api": "string", "nbd": []shape{"string"}}
	export := object{"name": "string", "uri": "string", "pointId": "string", "diskName": "string", "sizeBytes": "int", "readOnly": "bool",
		"sincePointId": "string", "dirtyBitmaps": []shape{"string"}}
	cursor := object{"name": "string", "diskName": "string", "pointId": "string", "frozenAt": "time", "createdAt": "time", "advancedAt": "time"}
	for _, tt := range []struct {
		line string
		want shape
	}{
		{"version", object{"version": "string", "goVersion": "string", "platform": "string"}},
		{"serve -d", ready},
		{"disk create web0 --size 4MiB", diskShape},
		{"disk import web1 disk.raw", diskShape},
		{"disk list", []shape{diskShape}},
		{"disk show web0", diskShape},
		{"machine create web --disk web0", machineShape},
		{"machine edit web --add-disk web1", machineShape},
		{"machine list", []shape{machineShape}},
		{"machine show web", machineShape},
		{"group create shop --machine web", groupShape},
		{"group list", []shape{groupShape}},
		{"group show shop", groupShape},
		{"recovery-point list", []shape{pointShape}},
		{"backup web", pointShape},
		{"backup web", pointShape},
		{"backup shop", []shape{pointShape}},
		{"backup web --no-wait", jobShape},
		{"job watch", []shape{jobShape}},
		{"disk map web0", []shape{extentShape}},
		{"cursor create c --disk web0", cursor},
		{"cursor advance c", cursor},
		{"cursor list", []shape{cursor}},
		{"disk map web0 --cursor c", []shape{extentShape}},
		{"disk show web0", diskShape},
		{"disk export web1 live.raw", fileShape},
		{"recovery-point list web", []shape{pointShape}},
		{"recovery-point show web@latest", pointShape},
		{"recovery-point verify web@latest", jobShape},
		{"recovery-point diff web@latest web@latest", []shape{object{"diskName": "string", "extents": []shape{extentShape}}}},
		{"restore disk web@latest:web1 back", diskShape},
		{"restore file web@latest:web1 back.qcow2", fileShape},
		{"export web@latest:web0 --as look", export},
		{"export --list", []shape{export}},
		{"unexport look", object{"name": "string"}},
		{"export web@latest:web0 --as look --since web@latest", export},
		{"unexport look", object{"name": "string"}},
		{"cursor delete c --yes", cursor},
		{"recovery-point verify --all", jobShape},
		{"vault verify", jobShape},
		{"recovery-point delete web@latest", pointShape},
		{"job list", []shape{jobShape}},
		{"vault status", vaultShape},
		{"vault list", []shape{vaultDetailsShape}},
		{"vault create other --redundancy LRS", vaultDetailsShape},
		{"vault edit other --soft-delete 30d", vaultDetailsShape},
		{"vault usage", usageShape},
		{"vault usage web", usageShape},
		{"vault gc --dry-run", jobShape},
		{"vault gc", jobShape},
		{"vault repair", jobShape},
		{"vault accept-clock --yes", object{"before": "time", "now": "time", "proven": "time"}},
		{"recovery-point hold web@latest", pointShape},
		{"recovery-point release web@latest", pointShape},
		{"prune web --keep-last 2 --dry-run", []shape{object{"pointId": "string", "machineName": "string", "timeName": "string", "keep": "bool",
			"reason": "string", "uniqueBytes": "int"}}},
		{"key show", []shape{keyShape}},
		{"key rotate", keyShape},
		{"key backup keys.escrow --secret-file secret", object{"file": "string", "secret": "string", "domains": "int", "missingVaults": []shape{"string"}}},
		{"key restore keys.escrow --secret-file secret", []shape{keyShape}},
		{"status", object{"version": "string", "pid": "int", "startedAt": "time", "dataDir": "string", "api": "string", "nbd": []shape{"string"},
			"siteName": "string", "disks": []shape{diskShape}, "machines": []shape{machineShape}, "lastPoints": []shape{pointShape},
			"runningJobs": []shape{jobShape}, "vault": vaultShape,
			"alerts": []shape{object{"severity": "string", "objectName": "string", "text": "string", "since": "time"}}}},
		{"doctor", []shape{object{"check": "string", "result": "string", "text": "string"}}},
		{"disk resize back --size 2MiB", diskShape},
		{"disk edit back --allow host", diskShape},
		{"disk delete back --yes", diskShape},
		{"group delete shop --yes", groupShape},
		{"machine delete web --yes", machineShape},
		{"stop", ready},
		{"key restore keys.escrow --site --secret-file secret", object{"siteId": "string", "siteName": "string", "dataDir": "string",
			"vaults": []shape{object{"name": "string", "locations": []shape{"string"}}}}},
	} {
		stdout, stderr, status := command(t, dir, append(append([]string{"keelblock"}, strings.Fields(tt.line)...), "--json")...)
		if status != 0 && tt.line != "doctor" {
			t.Fatalf("%s: exit status %d\n%s", tt.line, status, stderr)
		}
		d := json.NewDecoder(strings.NewReader(stdout))
		d.UseNumber()
		var got any
		if err := d.Decode(&got); err != nil {
			t.Errorf("%s: %v\n%s", tt.line, err, stdout)
			continue
		}
		if d.More() {
			t.Errorf("%s: more than one document", tt.line)
		}
		for _, b := range check(tt.line, tt.want, got) {
			t.Error(b)
		}
		if m, ok := got.(map[string]any); ok && m["cutId"] != nil && strings.Count(stdout, fmt.Sprintf("%q", m["id"])) != 1 {
			t.Errorf("%s: the id occurs more than once:\n%s", tt.line, stdout)
		}
	}
}
