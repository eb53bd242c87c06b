// Package cli is the command line of keelblock: verbs and flags in, calls of the
// control API out, and the result printed as people or programs want it.
//
//	main → Main(ctx, args, streams) → cobra → API client → daemon
//
// # The output contract
//
// Standard output carries the result and nothing else; progress, prompts, hints and
// errors go to standard error. With --json it is one JSON document whose shapes stand
// in shapes.go. Tables have a heading on a terminal only, so that scripts can read
// the first column. The exit status is chosen in exit.go, and nowhere else.
//
// # Who does the work
//
// Nearly everything happens in the daemon. Three verbs do their work here, as the
// user who typed them: disk import and disk export, and restore file (so that files
// belong to that user), and mount (so that a reader of guest file systems that fails
// cannot hurt the daemon).
package cli
