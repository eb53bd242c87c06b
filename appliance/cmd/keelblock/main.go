// Command keelblock is the whole product in one binary: the appliance (keelblock
// serve), and the command line that steers it.
package main

import (
	"context"
	"os"

	"github.com/keelblock/keelblock/appliance/cmd/internal/cli"
)

// version is set by the build.
var version = "devel"

func main() {
	os.Exit(cli.Main(context.Background(), os.Args[1:], cli.Streams{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Version: version,
	}))
}
