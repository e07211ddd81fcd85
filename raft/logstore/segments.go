package logstore

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/disk"
)

// segmentsDir is where the files lie.
const segmentsDir = "segments"

// freeMax is how many files are kept for their next use: about what is written
// between two flushes of the state store, when many become free at once.
const freeMax = 16

// segments are the files of the log. They belong to the writer, and to Open
// before it starts.
type segments struct {
	fs      vfs.FS
	dir     string
	maximum int64 // size of a file when the log has grown

	used    []*segment // that count, in their order; the last is written to
	free    []*segment // whose entries are all gone
	highest uint64     // number ever used
	wanted  int64      // size of the next file to be made
	named   int        // files made and found so far
	spare   *spareMaker
	asked   bool // the spare maker has an order
}

// openSegments opens all files of the directory, making it if needed.
func openSegments(fs vfs.FS, dir string, maximum int64) (*segments, error) {
	if err := disk.MakeDir(fs, dir); err != nil {
		return nil, err
	}
	names, err := fs.List(dir)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	slices.Sort(names)
	s := &segments{fs: fs, dir: dir, maximum: maximum, wanted: min(segmentBytesMin, maximum), spare: newSpareMaker(fs)}
	var found []*segment
	for _, name := range names {
		var n int
		if _, err := fmt.Sscanf(name, "%d.log", &n); err != nil || !strings.HasSuffix(name, ".log") {
			continue // not ours
		}
		s.named = max(s.named, n)
		g, err := openSegment(fs, fs.PathJoin(dir, name))
		if err != nil {
			return nil, errors.Join(err, closeFiles(found))
		}
		found = append(found, g)
		s.highest = max(s.highest, g.header.number)
	}
	s.used, s.free = chain(found)
	return s, nil
}

// chain finds the segments that follow each other up to the newest; the others
// are free.
func chain(found []*segment) (used, free []*segment) {
	byNumber := make(map[uint64]*segment, len(found))
	newest := uint64(0)
	for _, g := range found {
		if g.header.number != 0 {
			byNumber[g.header.number] = g
			newest = max(newest, g.header.number)
		}
	}
	for g := byNumber[newest]; g != nil; g = byNumber[g.header.before] {
		used = append(used, g)
		delete(byNumber, g.header.number)
	}
	slices.Reverse(used)
	for _, g := range found {
		if !slices.Contains(used, g) {
			free = append(free, g)
		}
	}
	return used, free
}

func (s *segments) active() *segment { return s.used[len(s.used)-1] }

// nextNumber is the number of a segment that is begun now.
func (s *segments) nextNumber() uint64 {
	s.highest++
	return s.highest
}

// discard frees the segments behind the first n: they do not count.
func (s *segments) discard(n int) {
	s.free = append(s.free, s.used[n:]...)
	s.used = s.used[:n:n]
}

// bytes is how large all used files are, and how much in them counts.
func (s *segments) bytes() (size, live int64) {
	for _, g := range s.used {
		size += max(g.size, g.end)
		live += g.live
	}
	return size, live
}

// next is a free file for the next segment: one that was used before, or one
// that was made meanwhile.
func (s *segments) next(failed <-chan struct{}) (*segment, error) {
	for i, g := range s.free {
		if g.size >= s.wanted/segmentGrowth { // a small one of the beginning is not worth its sync
			s.free = slices.Delete(s.free, i, i+1)
			return g, nil
		}
	}
	defer func() { s.wanted = min(s.wanted*segmentGrowth, s.maximum) }()
	if s.asked {
		s.asked = false
		return s.spare.take(failed)
	}
	return makeSegment(s.fs, s.newName(), s.wanted, nil)
}

// prepare has a file made for next, if there is none.
func (s *segments) prepare() {
	if s.asked || slices.ContainsFunc(s.free, func(g *segment) bool { return g.size >= s.wanted/segmentGrowth }) {
		return
	}
	s.asked = true
	s.spare.order(s.newName(), s.wanted)
}

func (s *segments) newName() string {
	s.named++
	return s.fs.PathJoin(s.dir, fmt.Sprintf("%06d.log", s.named))
}

// retire frees the oldest segments in which nothing counts any more. What made
// it so must be durable: they may be overwritten from here on.
func (s *segments) retire() error {
	for len(s.used) > 1 && s.used[0].live == 0 && s.used[0].readers.Load() == 0 {
		s.free = append(s.free, s.used[0])
		s.used[0] = nil
		s.used = s.used[1:]
	}
	return s.removeSurplus()
}

// removeSurplus removes files beyond freeMax, the smallest first.
func (s *segments) removeSurplus() error {
	if len(s.free) <= freeMax {
		return nil
	}
	slices.SortStableFunc(s.free, func(a, b *segment) int { return int(min(1, max(-1, b.size-a.size))) })
	for _, g := range s.free[freeMax:] {
		if err := errors.Join(g.file.Close(), s.fs.Remove(g.name)); err != nil {
			return fmt.Errorf("remove %s: %w", g.name, err)
		}
	}
	s.free = slices.Delete(s.free, freeMax, len(s.free))
	return nil
}

func (s *segments) close() error {
	return errors.Join(closeFiles(s.used), closeFiles(s.free))
}

func closeFiles(all []*segment) error {
	var errs []error
	for _, g := range all {
		errs = append(errs, g.file.Close())
	}
	return errors.Join(errs...)
}

// spareMaker makes files beside the writer: filling one with zeros takes its
// time.
type spareMaker struct {
	fs     vfs.FS
	orders chan spareOrder // capacity 1
	made   chan madeSpare  // capacity 1
	stop   chan struct{}
	done   chan struct{}
}

type spareOrder struct {
	name string
	size int64
}

type madeSpare struct {
	segment *segment
	err     error
}

func newSpareMaker(fs vfs.FS) *spareMaker {
	return &spareMaker{
		fs:     fs,
		orders: make(chan spareOrder, 1),
		made:   make(chan madeSpare, 1),
		stop:   make(chan struct{}),
		done:   make(chan struct{}),
	}
}

func (m *spareMaker) loop() {
	defer close(m.done)
	for {
		select {
		case o := <-m.orders:
			g, err := makeSegment(m.fs, o.name, o.size, m.stop)
			m.made <- madeSpare{g, err}
		case <-m.stop:
			return
		}
	}
}

// order asks for a file; take must follow before the next order.
func (m *spareMaker) order(name string, size int64) { m.orders <- spareOrder{name, size} }

// take waits for what was ordered, or for the store's failure.
func (m *spareMaker) take(failed <-chan struct{}) (*segment, error) {
	select {
	case made := <-m.made:
		return made.segment, made.err
	case <-failed:
		return nil, errStoreFailed
	}
}

// close ends the loop and closes a file that nobody has taken.
func (m *spareMaker) close() error {
	close(m.stop)
	<-m.done
	select {
	case made := <-m.made:
		if made.segment != nil {
			return made.segment.file.Close()
		}
	default:
	}
	return nil
}

var errStoreFailed = errors.New("the store has failed")

// ActiveFile names the file that the store in dir wrote last. The store must be
// closed. It is for those who look into a log, or damage one to see what
// happens.
func ActiveFile(dir string) (string, error) {
	files, err := openSegments(vfs.Default, vfs.Default.PathJoin(dir, segmentsDir), segmentDefault)
	if err != nil {
		return "", err
	}
	defer files.close()
	if len(files.used) == 0 {
		return "", fmt.Errorf("%s: no file of the log is in use", dir)
	}
	return files.active().name, nil
}
