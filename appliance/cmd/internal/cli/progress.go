package cli

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// plainEvery is how often progress is told where there is no terminal.
const plainEvery = 5 * time.Second

// progress shows how far long work is: a bar on a terminal, a line now and then
// otherwise.
type progress struct {
	mu    sync.Mutex
	w     io.Writer
	what  string
	bar   *progressbar.ProgressBar // nil without a terminal
	last  time.Time
	done  int64
	total int64
}

// newProgress starts to tell about what.
func (a *app) newProgress(what string, total int64) *progress {
	p := &progress{w: a.Err, what: what, total: total, last: time.Now()}
	if a.errTerminal {
		if total == 0 {
			total = -1 // not known yet
		}
		p.bar = progressbar.NewOptions64(total, progressbar.OptionSetDescription(what),
			progressbar.OptionSetWriter(a.Err), progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(),
			progressbar.OptionSetPredictTime(true), progressbar.OptionFullWidth())
	}
	return p
}

// set tells the bytes done, of the total if it is known.
func (p *progress) set(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = done
	if p.bar != nil {
		if total > 0 && total != p.total {
			p.total = total
			p.bar.ChangeMax64(total)
		}
		_ = p.bar.Set64(done)
		return
	}
	p.total = total
	if time.Since(p.last) < plainEvery {
		return
	}
	p.last = time.Now()
	if total > 0 {
		fmt.Fprintf(p.w, "%s: %s of %s (%d %%)\n", p.what, human(done), human(total), done*100/total)
	} else {
		fmt.Fprintf(p.w, "%s: %s\n", p.what, human(done))
	}
}

// add tells n bytes more.
func (p *progress) add(n int64) {
	p.mu.Lock()
	done, total := p.done+n, p.total
	p.mu.Unlock()
	p.set(done, total)
}

// end takes the bar away.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear()
		_ = p.bar.Exit()
	}
}
