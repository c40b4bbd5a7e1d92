class StockKernel: pass
