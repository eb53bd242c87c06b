// Package config is the configuration of the daemon: one struct of plain values,
// read once from a TOML file and from flags, checked, and handed down.
//
//	c, err := config.Load(path)    // defaults, then the file; "" reads no file
//	c.DataDir = flag               // then what the command line says
//	err = c.Validate()             // names the field and its limit
//	err = daemon.Run(ctx, c, ready)
//
// Nothing below the command reads the environment; what comes from there
// (KEELBLOCK_DATA, NOTIFY_SOCKET) is put into the struct by the command.
package config
