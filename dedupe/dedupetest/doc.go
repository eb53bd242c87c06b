// Package dedupetest checks implementations of dedupe.Store against the contract, and
// has a Store in memory for fast tests of what stands on the contract.
//
// [Run] is the conformance suite: package blockstore and [Memory] pass it. It needs
// no root and no network.
package dedupetest
