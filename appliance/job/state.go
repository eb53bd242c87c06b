package job

// State of a job.
type State string

// The states, as the API and the command line print them.
const (
	InProgress            State = "InProgress"
	Completed             State = "Completed"
	CompletedWithWarnings State = "CompletedWithWarnings"
	Failed                State = "Failed"
	Cancelling            State = "Cancelling"
	Cancelled             State = "Cancelled"
)

// Ended reports whether the state is final.
func (s State) Ended() bool { return s != InProgress && s != Cancelling }

// Event is what can happen to a job.
type Event int

// The events.
const (
	// Succeeded: the work returned no error and no warning.
	Succeeded Event = iota
	// SucceededPartly: no error, but a warning: a label lower than one asked for,
	// or part of the work undone.
	SucceededPartly
	// Broke: the work returned an error of its own.
	Broke
	// CancelAsked: an operator, or a stop of the daemon, wants it to end.
	CancelAsked
	// GaveUp: the work returned because it was asked to.
	GaveUp
	// Interrupted: a start of the daemon found it without an owner.
	Interrupted
)

// Next is the state after an event. A final state never changes. A job that is
// being cancelled and finishes all the same is what it became: a point that was
// committed is not called cancelled.
func Next(s State, e Event) State {
	if s.Ended() {
		return s
	}
	switch e {
	case Succeeded:
		return Completed
	case SucceededPartly:
		return CompletedWithWarnings
	case CancelAsked:
		return Cancelling
	case GaveUp:
		if s == Cancelling {
			return Cancelled
		}
		return Failed
	default:
		return Failed
	}
}
