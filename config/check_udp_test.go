package config

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// TestLoops compares which files are refused with a look at who reaches whom
// over any number of steps (CVE-2024-2169: datagrams that go round for ever).
func TestLoops(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 4))
	refused := 0
	for range 300 {
		n := 1 + rng.IntN(6)
		reaches := make([][]bool, n)
		var src strings.Builder
		for i := range n {
			reaches[i] = make([]bool, n)
			address := []string{":%d", "127.0.0.1:%d", "0.0.0.0:%d"}[rng.IntN(3)]
			fmt.Fprintf(&src, "listener \"udp\" \"l%d\" {\n address = \""+address+"\"\n upstream = upstream.u%d\n}\n", i, 1000+i, i)
			fmt.Fprintf(&src, "upstream \"u%d\" {\n server \"away\" { address = \"10.0.0.1:1000\" }\n", i)
			for j := range n {
				if rng.IntN(n*2) == 0 {
					reaches[i][j] = true
					fmt.Fprintf(&src, " server \"s%d\" { address = \"127.0.0.1:%d\" }\n", j, 1000+j)
				}
			}
			src.WriteString("}\n")
		}
		for k := range n { // Warshall's closure
			for i := range n {
				for j := range n {
					reaches[i][j] = reaches[i][j] || reaches[i][k] && reaches[k][j]
				}
			}
		}
		want := false
		for i := range n {
			want = want || reaches[i][i]
		}
		_, diags := parseText(t, src.String())
		if diags.HasErrors() != want {
			t.Fatalf("refused: %v, want %v: %v\n%s", diags.HasErrors(), want, diags, src.String())
		}
		refused += btoi(want)
	}
	if refused < 30 || refused > 270 {
		t.Errorf("%d of 300 files are refused: the test is not much of one", refused)
	}
}
