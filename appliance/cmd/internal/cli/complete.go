package cli

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

type completion = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective)

// completing answers a completion from the daemon, in bounded time and in silence
// when there is none. each says what the argument at a position is; positions beyond
// the last take what the last takes when repeat is set.
func (a *app) completing(repeat bool, each ...func(ctx context.Context, c *client) []string) completion {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		i := len(args)
		if i >= len(each) {
			if !repeat {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			i = len(each) - 1
		}
		if each[i] == nil {
			return nil, cobra.ShellCompDirectiveDefault
		}
		c, err := a.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
		defer cancel()
		var out []string
		for _, s := range each[i](ctx, c) {
			if strings.HasPrefix(s, word) {
				out = append(out, s)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

func completeDisks(ctx context.Context, c *client) []string    { return c.diskNames(ctx) }
func completeMachines(ctx context.Context, c *client) []string { return c.machineNames(ctx) }
func completePoints(ctx context.Context, c *client) []string   { return c.selectors(ctx, false) }
func completeDeleted(ctx context.Context, c *client) []string  { return c.selectors(ctx, true) }
func completeNothing(context.Context, *client) []string        { return nil }

func completeVaults(ctx context.Context, c *client) []string {
	r, err := c.vaults.List(ctx, connect.NewRequest(&kb.ListVaultsRequest{}))
	if err != nil {
		return nil
	}
	return mapped(r.Msg.GetVaults(), (*kb.Vault).GetName)
}
