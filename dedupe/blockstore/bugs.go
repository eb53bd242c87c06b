package blockstore

// bugs are mistakes that tests seed, to see that they would be found.
type bugs struct {
	skipHit      bool // a hit does not keep what was hit
	skipWindow   bool // what open batches were told to be held does not count
	skipPatch    bool // a patch that another batch stores, too, is not in the window
	skipStored   bool // nor is what is stored whole
	deeper       bool // a deeper patch replaces a shallower one of the same block
	skipTaking   bool // what is being taken is still held
	childrenLast bool // false: right. true: the sweep takes children before their nodes
	touchAnyway  bool // an entry that was verified is written back though it has moved
	removeFirst  bool // a pack goes before its entries have moved
	takeFresh    bool // records written since the mark began are not spared
	noCheckpoint bool // dead points are dropped without a checkpoint
	notesAlone   bool // a note goes though the manifest that it is about stays
	notesFirst   bool // purge notes go before the manifests they purge
	basesGo      bool // what only patches need goes
	bundlesWhole bool // no bundle is put together anew: no loss, only bytes
	keepSlots    bool // a patch in a new bundle is looked for where it was in the old one
	skipBase     bool // who puts a patch does not claim its base
	removeOnce   bool // a pack goes at one location only
	keepSurplus  bool // a location that comes back keeps the packs that went meanwhile
}
