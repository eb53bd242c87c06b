package cli

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// The objects of --json. Names, types and the presence of every field are a contract;
// a list is an array, an absent time is null.

type diskShape struct {
	Name           string   `json:"name"`
	SizeBytes      int64    `json:"sizeBytes"`
	AllocatedBytes int64    `json:"allocatedBytes"`
	Role           string   `json:"role"`
	MachineName    string   `json:"machineName"`
	State          string   `json:"state"`
	URI            string   `json:"uri"`
	ReadOnly       bool     `json:"readOnly"`
	DirtyBitmaps   []string `json:"dirtyBitmaps"`
}

func toDisk(d *kb.Disk) diskShape {
	return diskShape{Name: d.GetName(), SizeBytes: d.GetSizeBytes(), AllocatedBytes: d.GetAllocatedBytes(),
		Role: d.GetRole(), MachineName: d.GetMachineName(), State: d.GetState(), URI: d.GetUri(),
		ReadOnly: d.GetReadOnly(), DirtyBitmaps: list(d.GetDirtyBitmaps())}
}

type machineShape struct {
	Name        string      `json:"name"`
	Disks       []diskShape `json:"disks"`
	SiteName    string      `json:"siteName"`
	Role        string      `json:"role"`
	Generation  int64       `json:"generation"`
	LastPointID string      `json:"lastPointId"`
}

func toMachine(m *kb.Machine) machineShape {
	return machineShape{Name: m.GetName(), Disks: mapped(m.GetDisks(), toDisk), SiteName: m.GetSiteName(),
		Role: m.GetRole(), Generation: m.GetGeneration(), LastPointID: m.GetLastPointId()}
}

type groupShape struct {
	Name     string         `json:"name"`
	Machines []machineShape `json:"machines"`
}

func toGroup(g *kb.Group) groupShape {
	return groupShape{Name: g.GetName(), Machines: mapped(g.GetMachines(), toMachine)}
}

type pointDiskShape struct {
	Name       string `json:"name"`
	SizeBytes  int64  `json:"sizeBytes"`
	RootDigest string `json:"rootDigest"`
}

func toPointDisk(d *kb.PointDisk) pointDiskShape {
	return pointDiskShape{Name: d.GetName(), SizeBytes: d.GetSizeBytes(), RootDigest: d.GetRootDigest()}
}

type pointShape struct {
	ID           string           `json:"id"`
	MachineName  string           `json:"machineName"`
	CutID        string           `json:"cutId"`
	Generation   int64            `json:"generation"`
	Sequence     int64            `json:"sequence"`
	FrozenAt     *string          `json:"frozenAt"`
	Consistency  string           `json:"consistency"`
	Reason       string           `json:"reason"`
	Tracking     string           `json:"tracking"`
	Disks        []pointDiskShape `json:"disks"`
	ReadBytes    int64            `json:"readBytes"`
	ChangedBytes int64            `json:"changedBytes"`
	NewBytes     int64            `json:"newBytes"`
	StoredBytes  int64            `json:"storedBytes"`
	UniqueBytes  int64            `json:"uniqueBytes"`
	FreezeMicros int64            `json:"freezeMicros"`
	State        string           `json:"state"`
	DeletedUntil *string          `json:"deletedUntil"`
	RetainUntil  *string          `json:"retainUntil"`
	LockedUntil  *string          `json:"lockedUntil"`
	Held         bool             `json:"held"`
}

func toPoint(p *kb.RecoveryPoint) pointShape {
	return pointShape{ID: p.GetId(), MachineName: p.GetMachineName(), CutID: p.GetCutId(),
		Generation: p.GetGeneration(), Sequence: p.GetSequence(), FrozenAt: stamp(p.GetFrozenAt()),
		Consistency: p.GetConsistency(), Reason: p.GetReason(), Tracking: p.GetTracking(),
		Disks: mapped(p.GetDisks(), toPointDisk), ReadBytes: p.GetReadBytes(), ChangedBytes: p.GetChangedBytes(),
		NewBytes: p.GetNewBytes(), StoredBytes: p.GetStoredBytes(), UniqueBytes: p.GetUniqueBytes(),
		FreezeMicros: p.GetFreezeMicros(), State: p.GetState(), DeletedUntil: stamp(p.GetDeletedUntil()),
		RetainUntil: stamp(p.GetRetainUntil()), LockedUntil: stamp(p.GetLockedUntil()), Held: p.GetHeld()}
}

type jobShape struct {
	JobID      string  `json:"jobId"`
	Kind       string  `json:"kind"`
	ObjectName string  `json:"objectName"`
	State      string  `json:"state"`
	DoneBytes  int64   `json:"doneBytes"`
	TotalBytes int64   `json:"totalBytes"`
	StartedAt  *string `json:"startedAt"`
	EndedAt    *string `json:"endedAt"`
	Error      string  `json:"error"`
}

func toJob(j *kb.Job) jobShape {
	return jobShape{JobID: j.GetJobId(), Kind: j.GetKind(), ObjectName: j.GetObjectName(), State: j.GetState(),
		DoneBytes: j.GetDoneBytes(), TotalBytes: j.GetTotalBytes(), StartedAt: stamp(j.GetStartedAt()),
		EndedAt: stamp(j.GetEndedAt()), Error: j.GetError()}
}

type extentShape struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

func toExtent(e *kb.Extent) extentShape {
	return extentShape{Offset: e.GetOffset(), Length: e.GetLength()}
}

type diskDiffShape struct {
	DiskName string        `json:"diskName"`
	Extents  []extentShape `json:"extents"`
}

func toDiskDiff(d *kb.DiskDiff) diskDiffShape {
	return diskDiffShape{DiskName: d.GetDisk(), Extents: mapped(d.GetExtents(), toExtent)}
}

type exportShape struct {
	Name      string `json:"name"`
	URI       string `json:"uri"`
	PointID   string `json:"pointId"`
	DiskName  string `json:"diskName"`
	SizeBytes int64  `json:"sizeBytes"`
	ReadOnly  bool   `json:"readOnly"`
	// SincePointID and DirtyBitmaps are empty without --since.
	SincePointID string   `json:"sincePointId"`
	DirtyBitmaps []string `json:"dirtyBitmaps"`
}

type cursorShape struct {
	Name       string  `json:"name"`
	DiskName   string  `json:"diskName"`
	PointID    string  `json:"pointId"`
	FrozenAt   *string `json:"frozenAt"`
	CreatedAt  *string `json:"createdAt"`
	AdvancedAt *string `json:"advancedAt"`
}

func toCursor(c *kb.Cursor) cursorShape {
	return cursorShape{Name: c.GetName(), DiskName: c.GetDiskName(), PointID: c.GetPointId(), FrozenAt: stamp(c.GetFrozenAt()),
		CreatedAt: stamp(c.GetCreatedAt()), AdvancedAt: stamp(c.GetAdvancedAt())}
}

type fileShape struct {
	File         string `json:"file"`
	Format       string `json:"format"`
	PointID      string `json:"pointId"`
	DiskName     string `json:"diskName"`
	SizeBytes    int64  `json:"sizeBytes"`
	WrittenBytes int64  `json:"writtenBytes"`
}

type alertShape struct {
	Severity   string  `json:"severity"`
	ObjectName string  `json:"objectName"`
	Text       string  `json:"text"`
	Since      *string `json:"since"`
}

func toAlert(a *kb.Alert) alertShape {
	return alertShape{Severity: a.GetSeverity(), ObjectName: a.GetObjectName(), Text: a.GetText(), Since: stamp(a.GetSince())}
}

type vaultShape struct {
	Name           string `json:"name"`
	State          string `json:"state"`
	Reason         string `json:"reason"`
	Points         int64  `json:"points"`
	DeletedPoints  int64  `json:"deletedPoints"`
	Packs          int64  `json:"packs"`
	PackBytes      int64  `json:"packBytes"`
	Blocks         int64  `json:"blocks"`
	BlockSizeBytes int64  `json:"blockSizeBytes"`
	ProtectedBytes int64  `json:"protectedBytes"`
	FreeBytes      int64  `json:"freeBytes"`
	CorruptBlocks  int64  `json:"corruptBlocks"`
	// RepairedBlocks are reads that another copy answered.
	RepairedBlocks    int64           `json:"repairedBlocks"`
	QuarantinedBlocks int64           `json:"quarantinedBlocks"`
	DamagedPoints     []string        `json:"damagedPoints"`
	Locations         []locationShape `json:"locations"`
	// LastCollection has no outcome when there was none.
	LastCollection collectionShape `json:"lastCollection"`
}

type collectionShape struct {
	StartedAt  *string `json:"startedAt"`
	EndedAt    *string `json:"endedAt"`
	Outcome    string  `json:"outcome"`
	Reason     string  `json:"reason"`
	FreedBytes int64   `json:"freedBytes"`
	KeptBytes  int64   `json:"keptBytes"`
	Error      string  `json:"error"`
}

func toCollection(c *kb.Collection) collectionShape {
	return collectionShape{StartedAt: stamp(c.GetStartedAt()), EndedAt: stamp(c.GetEndedAt()), Outcome: c.GetOutcome(), Reason: c.GetReason(),
		FreedBytes: c.GetFreedBytes(), KeptBytes: c.GetKeptBytes(), Error: c.GetError()}
}

func toVault(v *kb.VaultStatusResponse) vaultShape {
	return vaultShape{Name: v.GetName(), State: v.GetState(), Reason: v.GetReason(), Points: v.GetPoints(),
		DeletedPoints: v.GetDeletedPoints(), Packs: v.GetPacks(), PackBytes: v.GetPackBytes(), Blocks: v.GetBlocks(),
		BlockSizeBytes: v.GetBlockSizeBytes(), ProtectedBytes: v.GetProtectedBytes(), FreeBytes: v.GetFreeBytes(),
		CorruptBlocks: v.GetCorruptBlocks(), RepairedBlocks: v.GetRepairedBlocks(), QuarantinedBlocks: v.GetQuarantinedBlocks(),
		DamagedPoints: append([]string{}, v.GetDamagedPoints()...), Locations: mapped(v.GetLocations(), toLocation),
		LastCollection: toCollection(v.GetLastCollection())}
}

type locationShape struct {
	Path         string `json:"path"`
	State        string `json:"state"`
	Reason       string `json:"reason"`
	Packs        int64  `json:"packs"`
	MissingPacks int64  `json:"missingPacks"`
	FreeBytes    int64  `json:"freeBytes"`
}

type vaultDetailsShape struct {
	Name              string          `json:"name"`
	State             string          `json:"state"`
	Reason            string          `json:"reason"`
	CreatedAt         *string         `json:"createdAt"`
	BlockSizeBytes    int64           `json:"blockSizeBytes"`
	Redundancy        string          `json:"redundancy"`
	Compression       string          `json:"compression"`
	Locations         []locationShape `json:"locations"`
	Encryption        string          `json:"encryption"`
	KeyKind           string          `json:"keyKind"`
	SoftDeleteSeconds int64           `json:"softDeleteSeconds"`
	MinimumRetention  int64           `json:"minimumRetentionSeconds"`
	Immutability      string          `json:"immutability"`
	Points            int64           `json:"points"`
	SiteName          string          `json:"siteName"`
}

func toVaultDetails(v *kb.Vault) vaultDetailsShape {
	return vaultDetailsShape{Name: v.GetName(), State: v.GetState(), Reason: v.GetReason(), CreatedAt: stamp(v.GetCreatedAt()),
		BlockSizeBytes: v.GetBlockSizeBytes(), Redundancy: v.GetRedundancy(), Compression: v.GetCompression(), Encryption: v.GetEncryption(), KeyKind: v.GetKeyKind(),
		SoftDeleteSeconds: v.GetSoftDeleteSeconds(), MinimumRetention: v.GetMinimumRetentionSeconds(), Immutability: v.GetImmutability(), Points: v.GetPoints(), SiteName: v.GetSiteName(),
		Locations: mapped(v.GetLocations(), toLocation)}
}

func toLocation(l *kb.Location) locationShape {
	return locationShape{Path: l.GetPath(), State: l.GetState(), Reason: l.GetReason(), Packs: l.GetPacks(), MissingPacks: l.GetMissingPacks(), FreeBytes: l.GetFreeBytes()}
}

type keyDomainShape struct {
	VaultName     string   `json:"vaultName"`
	DomainID      string   `json:"domainId"`
	Kind          string   `json:"kind"`
	Source        string   `json:"source"`
	WrappingKeyID string   `json:"wrappingKeyId"`
	DataKeyIDs    []string `json:"dataKeyIds"`
	WrappedAt     *string  `json:"wrappedAt"`
	BackedUpAt    *string  `json:"backedUpAt"`
	Available     bool     `json:"available"`
	Reason        string   `json:"reason"`
}

func toKeyDomain(d *kb.KeyDomain) keyDomainShape {
	return keyDomainShape{VaultName: d.GetVault(), DomainID: d.GetDomainId(), Kind: d.GetKind(), Source: d.GetSource(),
		WrappingKeyID: d.GetWrappingKeyId(), DataKeyIDs: list(d.GetDataKeyIds()), WrappedAt: stamp(d.GetWrappedAt()),
		BackedUpAt: stamp(d.GetBackedUpAt()), Available: d.GetAvailable(), Reason: d.GetReason()}
}

type keyBackupShape struct {
	File          string   `json:"file"`
	Secret        string   `json:"secret"`
	Domains       int64    `json:"domains"`
	MissingVaults []string `json:"missingVaults"`
}

type siteShape struct {
	SiteID   string           `json:"siteId"`
	SiteName string           `json:"siteName"`
	DataDir  string           `json:"dataDir"`
	Vaults   []siteVaultShape `json:"vaults"`
}

type siteVaultShape struct {
	Name      string   `json:"name"`
	Locations []string `json:"locations"`
}

type statusShape struct {
	Version     string         `json:"version"`
	PID         int64          `json:"pid"`
	StartedAt   *string        `json:"startedAt"`
	DataDir     string         `json:"dataDir"`
	API         string         `json:"api"`
	NBD         []string       `json:"nbd"`
	SiteName    string         `json:"siteName"`
	Disks       []diskShape    `json:"disks"`
	Machines    []machineShape `json:"machines"`
	LastPoints  []pointShape   `json:"lastPoints"`
	RunningJobs []jobShape     `json:"runningJobs"`
	Alerts      []alertShape   `json:"alerts"`
	Vault       vaultShape     `json:"vault"`
}

func toStatus(s *kb.StatusResponse) statusShape {
	return statusShape{Version: s.GetVersion(), PID: s.GetPid(), StartedAt: stamp(s.GetStartedAt()), DataDir: s.GetDataDir(),
		API: s.GetApiUri(), NBD: list(s.GetNbdUris()), SiteName: s.GetSiteName(), Disks: mapped(s.GetDisks(), toDisk),
		Machines: mapped(s.GetMachines(), toMachine), LastPoints: mapped(s.GetLastPoints(), toPoint),
		RunningJobs: mapped(s.GetRunningJobs(), toJob), Alerts: mapped(s.GetAlerts(), toAlert), Vault: toVault(s.GetVault())}
}

type findingShape struct {
	Check  string `json:"check"`
	Result string `json:"result"`
	Text   string `json:"text"`
}

func toFinding(f *kb.Finding) findingShape {
	return findingShape{Check: f.GetCheck(), Result: f.GetResult(), Text: f.GetText()}
}

type versionShape struct {
	Version   string `json:"version"`
	GoVersion string `json:"goVersion"`
	Platform  string `json:"platform"`
}

type readyShape struct {
	PID int      `json:"pid"`
	API string   `json:"api"`
	NBD []string `json:"nbd"`
}

type nameShape struct {
	Name string `json:"name"`
}

type directoryShape struct {
	Directory string `json:"directory"`
	PID       int    `json:"pid"`
}

// list is s, never null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// mapped turns each element, and is never null.
func mapped[A, B any](in []A, f func(A) B) []B {
	out := make([]B, len(in))
	for i, a := range in {
		out[i] = f(a)
	}
	return out
}

// stamp is a time in RFC 3339, UTC, or nil.
func stamp(t *timestamppb.Timestamp) *string {
	if t == nil || t.AsTime().IsZero() || t.GetSeconds() == 0 && t.GetNanos() == 0 {
		return nil
	}
	s := t.AsTime().UTC().Format(time.RFC3339Nano)
	return &s
}
