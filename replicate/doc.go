// Package replicate is the contract of the second site: what a site, a link and
// a lag against the recovery point objective are.
//
// Data flows blockdev → dedupe → replicate → appliance. A target site pulls
// recovery points from a source site: the manifest is announced, the differences
// of its hash trees are fetched, then the blocks that the target lacks, and the
// point is published last, by one transaction, when everything below it has been
// proved and is durable. So at either site a recovery point is there in whole or
// not at all ([Lag] counts only whole ones).
//
// This package holds only the nouns. The wire format, source, target, recovery
// plans and the failover state machine are packages of their own below it.
package replicate
