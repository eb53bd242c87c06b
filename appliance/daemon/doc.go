// Package daemon is the composition root: it opens the parts of an appliance, joins
// them, owns every goroutine, and ends them in order. Only the command imports it.
//
//	config → Run → disks on nbd.sock → catalog, vault → API on api.sock
//
// # Start
//
//  1. DIR is made (0750) and locked: one daemon for each DIR.
//  2. The disks of disks.json are opened and served. From here guests work, whatever
//     happens below.
//  3. The API listens.
//  4. Under the marker: ballast dropped if the file system is full, catalog opened,
//     vault opened. An error closes that part and becomes an alert; a death leaves
//     the marker, and after two the vault stays closed.
//  5. Ready is announced when 4 has ended, or after [readyTimeout].
//
// # Stop
//
// A stop (ctx, or the API's Stop) refuses new jobs and cancels those that run, ends
// readers, drains the NBD servers, saves the maps, closes vault and catalog, and
// removes the sockets. Each step is bounded by Config.DrainSeconds; what
// overstays is left as a kill would leave it.
package daemon
