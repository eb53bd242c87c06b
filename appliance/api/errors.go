package api

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/keys"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// codes maps our errors, the first match wins. What is nearest to the cause stands
// first: a backup that ended because the vault is full is about space.
var codes = []struct {
	err  error
	code connect.Code
}{
	{appliance.ErrCancelled, connect.CodeCanceled},
	{appliance.ErrNoSpace, connect.CodeResourceExhausted},
	{dedupe.ErrNoSpace, connect.CodeResourceExhausted},
	{blockdev.ErrNoSpace, connect.CodeResourceExhausted},
	{unix.ENOSPC, connect.CodeResourceExhausted},
	{appliance.ErrNotFound, connect.CodeNotFound},
	{recoverypoint.ErrNotFound, connect.CodeNotFound},
	{appliance.ErrInvalid, connect.CodeInvalidArgument},
	{recoverypoint.ErrBadSelector, connect.CodeInvalidArgument},
	{recoverypoint.ErrAmbiguous, connect.CodeInvalidArgument},
	{appliance.ErrExists, connect.CodeAlreadyExists},
	{appliance.ErrRefused, connect.CodePermissionDenied},
	{recoverypoint.ErrHeld, connect.CodePermissionDenied},
	{appliance.ErrInUse, connect.CodeFailedPrecondition},
	{localdisk.ErrInUse, connect.CodeFailedPrecondition},
	{appliance.ErrUnavailable, connect.CodeUnavailable},
	{keys.ErrWrongSecret, connect.CodeUnauthenticated},
	{keys.ErrOtherSite, connect.CodeFailedPrecondition},
	{dedupe.ErrNoKey, connect.CodeUnavailable},
	{dedupe.ErrWrongKey, connect.CodeUnavailable},
	{dedupe.ErrClosed, connect.CodeUnavailable},
	{dedupe.ErrCorrupt, connect.CodeDataLoss},
	{blockdev.ErrCorrupt, connect.CodeDataLoss},
	{cbt.ErrAborted, connect.CodeAborted},
	{context.DeadlineExceeded, connect.CodeDeadlineExceeded},
	{context.Canceled, connect.CodeCanceled},
}

// Code is the Connect code of an error; what is not mapped is internal.
func Code(err error) connect.Code {
	var ce *connect.Error
	if errors.As(err, &ce) {
		return ce.Code()
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return connect.CodeInternal
}

// CodeName is Code as a job's record has it, "" for nil.
func CodeName(err error) string {
	if err == nil {
		return ""
	}
	return Code(err).String()
}

// connectError gives err its code.
func connectError(err error) error {
	var ce *connect.Error
	if err == nil || errors.As(err, &ce) {
		return err
	}
	return connect.NewError(Code(err), err)
}
