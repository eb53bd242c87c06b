package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) pointHold() *cobra.Command {
	return a.holding("hold P [--text TEXT]", "keep a point from being deleted, by anybody or anything, until it is released",
		`Holds a point: it is neither deleted nor expired nor purged until it is released, whatever
the rules say and whoever asks. A hold survives restarts and vault rebuild-index.`,
		func(ctx context.Context, c *client, point, text string) (*connect.Response[kb.RecoveryPoint], error) {
			return c.points.Hold(ctx, connect.NewRequest(&kb.HoldPointRequest{Point: point, Text: text}))
		})
}

func (a *app) pointRelease() *cobra.Command {
	return a.holding("release P [--text TEXT]", "end a hold",
		`Ends the hold of a point: rules and people may delete it again, as far as the vault's
immutability allows.`,
		func(ctx context.Context, c *client, point, text string) (*connect.Response[kb.RecoveryPoint], error) {
			return c.points.Release(ctx, connect.NewRequest(&kb.ReleasePointRequest{Point: point, Text: text}))
		})
}

func (a *app) holding(use, short, long string, do func(ctx context.Context, c *client, point, text string) (*connect.Response[kb.RecoveryPoint], error)) *cobra.Command {
	var text string
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := do(cmd.Context(), c, args[0], text)
			if err != nil {
				return err
			}
			return a.print(toPoint(r.Msg), nil)
		},
		ValidArgsFunction: a.completing(false, completePoints),
	}
	cmd.Flags().StringVar(&text, "text", "", "why, kept with the point")
	return cmd
}
